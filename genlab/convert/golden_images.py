"""Golden files of system "metrics" that concern images: resizing, rounding, reconstruction and extractors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genlab.convert.goldens import Case, Check, Golden
from genlab.evaluation import reconstruction, resize
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.quantise import Rounding, quantise
from genlab.tokenization.losses.lpips_network import LPIPS_TRUNKS, LpipsNet, lpips_network

_RESIZE: dict[str, tuple[Callable[[Tensor, resize.Size], Tensor], float]] = {  # rule -> function, absolute tolerance
    "tf1_bilinear": (resize.tf1_bilinear, 1e-3),
    "torch_bilinear": (resize.torch_bilinear, 1e-3),
    "torch_bicubic_antialias": (resize.bicubic_antialias, 1e-3),
    "clean_fid_pil_bicubic_float": (resize.clean_fid_bicubic, 1e-3),
    "pil_bicubic_uint8": (lambda images, size: resize.pil(images, size, "bicubic"), 0.0),
    "pil_bilinear_uint8": (lambda images, size: resize.pil(images, size, "bilinear"), 0.0),
}
_ROUNDING = {  # code base -> its rule
    "dit_sit_fit": Rounding.HALF_UP,
    "mar_xar": Rounding.HALF_EVEN,
    "dimr_save_image": Rounding.SAVE_IMAGE,
    "flexvar_save_image": Rounding.SAVE_IMAGE,
    "studiogan": Rounding.SAVE_IMAGE,
    "dmd2": Rounding.TRUNCATE,
    "titok_truncate": Rounding.TRUNCATE,
    "var_demo_truncate": Rounding.TRUNCATE,
}
_INCEPTION = {  # torch-fidelity's layer -> ours
    "64": "pool_64",
    "192": "pool_192",
    "768": "pool_768",
    "2048": "pool",
    "logits_unbiased": "logits_unbiased",
    "logits": "logits",
    "spatial": "spatial",
}


def _resize(golden: Golden) -> Iterator[Check]:
    for name in golden.group("out"):
        index, rule = name.split(".")
        function, tolerance = _RESIZE[rule]
        size = golden.config["out"][int(index)]
        size = tuple(size) if isinstance(size, list) else size
        yield Check(f"out.{name}", function(golden[f"in.{index}"], size), tolerance, absolute=True)


def _quantise(golden: Golden) -> Iterator[Check]:
    for name in golden.group("out"):
        yield Check(f"out.{name}", quantise(golden["in.x"], _ROUNDING[name]), 0.0)


def _reconstruction(golden: Golden) -> Iterator[Check]:
    rec, original = (golden[f"in.{name}"].permute(0, 3, 1, 2) for name in ("rec", "gt"))
    error = reconstruction.mse(rec, original)
    yield Check("out.mse", error, 1e-9)
    yield Check("out.psnr_per_image", reconstruction.psnr(error), 1e-9)
    yield Check("out.psnr_mean", reconstruction.psnr(error).mean(), 1e-9)
    yield Check("out.psnr_pooled_mse", reconstruction.psnr(error.mean()), 1e-9)
    for name in golden.group("out"):
        if name.startswith("ssim_"):
            value = reconstruction.ssim(original, rec, name.removeprefix("ssim_"))
            yield Check(f"out.{name}", value, 1e-6, absolute=True)
    for net in LPIPS_TRUNKS:
        if f"out.lpips_{net}" in golden.tensors:
            yield from _lpips(golden, net, rec, original)


def _lpips(golden: Golden, net: LpipsNet, rec: Tensor, original: Tensor) -> Iterator[Check]:
    with torch.device("meta"):
        trunk = lpips_network(net).net
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{net}.pth"
        torch.save(recipe_weights(trunk, golden.config["lpips_weight_seed"]), path)
        metric = reconstruction.load_lpips(net, path, allow_unofficial=True)
    parts = metric.per_layer(original, rec)
    yield Check(f"out.lpips_{net}", parts.sum(1), 1e-4)
    yield Check(f"out.lpips_{net}_per_layer", parts, 1e-4)
    yield Check(f"out.lpips_{net}_f64", metric.double()(original, rec), 1e-5)


def _inception(golden: Golden) -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as folder:
        extractor = load_extractor(
            "inception",
            write_inception(Path(folder), golden.config["weight_seed"]),
            layers=list(_INCEPTION.values()),
            allow_unofficial=True,
        )
    batches = {name.removeprefix("images_"): images for name, images in golden.group("in").items()}
    single = {index: extractor(images) for index, images in batches.items()}
    double = {index: extractor.double()(images) for index, images in batches.items()}
    for name in golden.group("out"):
        index, layer = name.split(".")
        features = double if layer.endswith("_f64") else single
        yield Check(f"out.{name}", features[index][_INCEPTION[layer.removesuffix("_f64")]], 1e-4)


def _efficientnet_lite0(golden: Golden) -> Iterator[Check]:
    extractor = load_extractor("efflite0", layers=["pool", "logits"])
    for name, image in golden.group("in").items():
        features = extractor(image.permute(2, 0, 1)[None])
        yield Check(f"out.{name}.pool", features["pool"][0], 1e-4)
        yield Check(f"out.{name}.logits", features["logits"][0], 1e-4)
        yield Check(f"out.{name}.top5", features["logits"][0].topk(5).indices, 0.0)


def recipe_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Pseudo-random weights by the goldens' rule (`../shared/specs/evaluation.md`, section 10): float32 by name."""
    random = np.random.RandomState(seed)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    weights = {}
    for key in sorted(key for key in shapes if not key.endswith("num_batches_tracked")):
        z = random.standard_normal(shapes[key])
        if key.endswith("running_var"):
            z = 1.0 + 0.2 * np.abs(z)
        elif key.endswith("running_mean"):
            z = 0.1 * z
        elif key.endswith("bn.weight"):
            z = 1.0 + 0.1 * z
        elif key.endswith("bias"):
            z = 0.05 * z
        elif z.ndim == 4:
            z = z * np.sqrt(2.0 / np.prod(z.shape[1:]))
        elif z.ndim == 2:
            z = z * np.sqrt(1.0 / z.shape[-1])
        weights[key] = torch.from_numpy(z.astype(np.float32))
    return weights


def write_inception(folder: Path, seed: int) -> Path:
    """A file of pseudo-random Inception weights in `folder`, in the official file's form (96 MB)."""
    from genlab.evaluation.extractors.inception import Network

    path = folder / f"inception-{seed}.pth"
    with torch.device("meta"):
        network = Network()
    torch.save(recipe_weights(network, seed), path)
    return path


CASES: dict[str, Case] = {
    "resize": _resize,
    "quantise": _quantise,
    "reconstruction": _reconstruction,
    "inception_random_weights": _inception,
    "efficientnet_lite0": _efficientnet_lite0,
}
