"""References: what generated images are held against, as statistics that know where they come from.

Read: genlab's own statistics, ADM's reference batches (mu, sigma, mu_s, sigma_s, arr_0), EDM's npz and torch-fidelity's
cached statistics (mu, sigma). Made: from any source of images. A reference of another extractor, transform or
resolution has numbers of the same shape and means something else, so it is refused wherever it can be told.

Letters: d features, n reference images.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import whole_file
from genlab.evaluation.archives import map_member, npz_keys
from genlab.evaluation.collected import Collected, Layer
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.frechet import Gaussian

FORMAT = 1
ROWS = 10_000
"""Features that a reference keeps for pairwise metrics: as many as ADM's reference batches hold images."""
_ACCOUNT = "genlab"
_PROBE_TOLERANCE = 1e-2  # of the largest feature: far above rounding across devices, far below another transform


@dataclass(frozen=True)
class Reference:
    """A reference on one extractor."""

    collected: Collected
    account: dict[str, Any]
    """JSON-able: kind, path, fingerprint of the data, image size, number of images, where known."""
    warnings: list[str] = field(default_factory=list)


def probe(extractor: Extractor, image_size: int) -> NDArray[np.float32]:
    """Features [d] of one fixed image: what tells transforms and weights apart when shapes agree."""
    ramp = torch.linspace(0, 255, image_size)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    image = torch.stack([rows, columns, (rows * 7 + columns * 3) % 256]).to(torch.uint8)
    layers: Tensor = extractor(image[None])[extractor.feature_layer]
    return layers[0].float().cpu().numpy()


def save_reference(file: Path, reference: Reference, extractor: Extractor) -> None:
    """Write statistics as .npz: ADM's names (mu, sigma, mu_s, sigma_s), the features kept, and an account of it all."""
    collected = reference.collected
    arrays: dict[str, NDArray[Any]] = {}
    for name, suffix in ((extractor.feature_layer, ""), (extractor.spatial_layer, "_s")):
        layer = collected.layers.get(name or "")
        if layer is None:
            continue
        factor = layer.gaussian.factor
        arrays[f"mu{suffix}"] = layer.gaussian.mean.cpu().numpy()
        arrays[f"sigma{suffix}"] = (factor.mT @ factor).cpu().numpy()
        if not suffix and layer.paired and layer.features is not None:
            arrays |= {"features": layer.features.numpy(), "stride": np.array(layer.stride)}
        arrays["count"] = np.array(layer.count)
    if collected.labels is not None:
        arrays["label"] = collected.labels.numpy()
    if collected.pictures is not None:
        arrays["pictures"] = collected.pictures.numpy()
    arrays["probe"] = probe(extractor, int(reference.account["image_size"]))
    account = {"format": FORMAT, "extractor": extractor.describe(), **reference.account}
    arrays[_ACCOUNT] = np.array(json.dumps(account))
    with whole_file(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_reference(file: Path, extractor: Extractor, image_size: int) -> Reference:
    """Statistics from any of the known files, for images of side `image_size` on `extractor`.

    Raises:
        DataError: another extractor, transform, resolution or dimension; truncated, or no statistics.
    """
    if file.suffix in (".pt", ".pth"):
        return _foreign(_torch_fidelity(file), file, extractor, "torch-fidelity cache")
    keys = npz_keys(file)
    if "mu" not in keys or "sigma" not in keys:
        raise DataError(f"{file}: holds no statistics (mu, sigma), only {', '.join(sorted(keys))}")
    if _ACCOUNT in keys:
        return _own(file, keys, extractor, image_size)
    wanted = [key for key in ("mu", "sigma", "mu_s", "sigma_s") if key in keys]
    kind = "ADM reference batch" if "arr_0" in keys else "statistics (mu, sigma)"
    if "arr_0" in keys:
        side = map_member(file, "arr_0").shape[1]
        if side != image_size:
            raise DataError(
                f"{file}: its images are {side} pixels wide, the scored ones {image_size}; use that resolution's file"
            )
    return _foreign({key: np.array(map_member(file, key)) for key in wanted}, file, extractor, kind)


def _own(file: Path, keys: set[str], extractor: Extractor, image_size: int) -> Reference:
    account = json.loads(str(map_member(file, _ACCOUNT)[()]))
    if account["format"] != FORMAT:
        raise DataError(
            f"{file}: statistics of format {account['format']}, this genlab reads {FORMAT}; compute them again"
        )
    theirs, ours = account["extractor"], extractor.describe()
    for key, word in (
        ("backbone", "extractor"),
        ("checksum", "weights"),
        ("resize", "transform"),
        ("precision", "precision"),
    ):
        if theirs[key] != ours[key]:
            raise DataError(
                f"{file}: its {word} is {theirs[key]!r}, this evaluation's {ours[key]!r};"
                " compute it again with genlab reference"
            )
    if account["image_size"] != image_size:
        raise DataError(
            f"{file}: made from images {account['image_size']} pixels wide, the scored ones have {image_size}; scores"
            " of two resolutions cannot be compared"
        )
    expected, found = map_member(file, "probe"), probe(extractor, image_size)
    if expected.shape != found.shape or np.abs(expected - found).max() > _PROBE_TOLERANCE * np.abs(expected).max():
        raise DataError(
            f"{file}: the extractor gives other features for the same image than when this was made; compute it again"
        )
    layers = {extractor.feature_layer: _stored_layer(file, keys, "")}
    if "mu_s" in keys and extractor.spatial_layer:
        layers[extractor.spatial_layer] = _stored_layer(file, keys, "_s")
    labels, pictures = (
        torch.from_numpy(np.array(map_member(file, key))) if key in keys else None for key in ("label", "pictures")
    )
    return Reference(Collected(layers, labels=labels, pictures=pictures), {**account, "path": str(file)})


def _stored_layer(file: Path, keys: set[str], suffix: str) -> Layer:
    count = int(map_member(file, "count")[()])
    features = torch.from_numpy(np.array(map_member(file, "features"))) if "features" in keys and not suffix else None
    stride = int(map_member(file, "stride")[()]) if features is not None else 1
    if features is not None and stride == 1:
        return Layer(count, None, features)  # exact below full rank too
    mean, covariance = (torch.from_numpy(np.array(map_member(file, f"{key}{suffix}"))) for key in ("mu", "sigma"))
    return Layer(count, None, features, stride, fitted=Gaussian.from_statistics(mean, covariance))


def _foreign(arrays: dict[str, NDArray[Any]], file: Path, extractor: Extractor, kind: str) -> Reference:
    """Statistics that do not say what they are of: by their dimension they must be Inception's."""
    width, expected = len(arrays["mu"]), extractor.dimensions[extractor.feature_layer]
    if extractor.family != "inception" or width != expected:
        raise DataError(
            f"{file}: {kind} of {width} features, made with Inception; this evaluation uses {extractor.name}"
            f" ({expected} features). Use --extractor inception, or another reference"
        )
    layers = {extractor.feature_layer: Layer(0, None, None, fitted=_fitted(arrays, ""))}
    if "mu_s" in arrays and extractor.spatial_layer:
        layers[extractor.spatial_layer] = Layer(0, None, None, fitted=_fitted(arrays, "_s"))
    with file.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return Reference(Collected(layers), {"kind": kind, "path": str(file), "sha256": checksum})


def _fitted(arrays: dict[str, NDArray[Any]], suffix: str) -> Gaussian:
    mean, covariance = (
        torch.from_numpy(np.array(arrays[f"{key}{suffix}"], dtype=np.float64)) for key in ("mu", "sigma")
    )
    return Gaussian.from_statistics(mean, covariance)


def _torch_fidelity(file: Path) -> dict[str, NDArray[Any]]:
    """A cached `...-stat-fid-2048.pt`: a dict of numpy arrays, whose reconstruction alone is allowed."""
    rebuild = np.empty(0).__reduce__()[0]  # how numpy unpickles an array; older files name its former module
    allowed: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
    allowed += [rebuild, (rebuild, "numpy.core.multiarray._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed):
            state = torch.load(file, map_location="cpu", weights_only=True)
        return {key: np.asarray(state[key]) for key in ("mu", "sigma")}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file}: no torch-fidelity statistics (a dict with mu and sigma): {reason}") from error


def cache_folder() -> Path:
    """Where computed references are kept between evaluations."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "genlab" / "references"


def find_published(names: tuple[str, ...]) -> Path | None:
    """A published reference file in this folder's references/ or in the cache."""
    places = (Path("references"), cache_folder())
    return next((place / name for name in names for place in places if (place / name).is_file()), None)
