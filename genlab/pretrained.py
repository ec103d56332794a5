"""Generators on disk: what a run exports, and how exports, run folders and hub repositories are read.

    export/tokenizer/             the trained tokenizer that it works on, if any (tokenization/storage.py)
    export/config.json            how to build it: tokenizer, network, process, default sampling, classes, provenance
    export/network.safetensors    weights; its header repeats what identifies them
    export/adapter.safetensors    of a fine-tuned one: what differs from its base, enough where the base is at hand
    export/README.md              model card

Nothing that is read here can execute.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from genlab import __version__
from genlab.config import RunConfig, validate_parts
from genlab.config_errors import nearest
from genlab.core.contracts import Network, Tokenizer
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.files import whole_folder, write_text
from genlab.core.generator import Generator
from genlab.core.hub import download, is_repository
from genlab.core.weights import fill_all, read_tensors
from genlab.distillation.partition import FILE as PARTITION
from genlab.finetuning import stored
from genlab.model_card import model_card
from genlab.tokenization.storage import find_folder, holds_tokenizer
from genlab.training import checkpoint, snapshots
from genlab.training.heads import without_head

DESCRIPTION = "generator.json"  # in a run folder: the export's config.json, written when training starts
FORMAT = 1
_BUNDLED = "tokenizer"  # folder of an export
_WEIGHTS, _ADAPTER = "network.safetensors", "adapter.safetensors"


def describe(config: RunConfig, tokenizer: Tokenizer, num_classes: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The JSON-able description from which a generator is built again."""
    parts = config.model_dump(mode="json", include={"tokenizer", "network", "process", "sampling"})
    return {
        "format": FORMAT,
        "kind": "generator",
        "genlab": __version__,
        "name": config.name,
        **parts,
        "image_size": tokenizer.spec.image_size,
        "num_classes": num_classes,
        "class_names": list(class_names),
        "data": config.data.name,
        "tokenizer_fingerprint": tokenizer.spec.fingerprint,
        "license": config.license,
        "ema": config.training.average,
    }


def build(description: dict[str, Any], where: str, trust: bool = False) -> Generator:
    """A generator with fresh weights from its description.

    Raises:
        CheckpointError: not a description this genlab can read, or another tokenizer than the generator was trained on.
    """
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(f"{where}: format {description['format']}, this genlab reads {FORMAT}")
        parts = validate_parts(
            {key: description[key] for key in ("tokenizer", "network", "process", "sampling")}, where, trust
        )
        tokenizer = parts.tokenizer.build(description["image_size"])
        num_classes, names = int(description["num_classes"]), tuple(map(str, description["class_names"]))
        expected = description["tokenizer_fingerprint"]
    except (KeyError, TypeError, ValueError, ValidationError, ConfigError) as error:
        raise CheckpointError(f"{where}: not a generator that this genlab can build ({error})") from error
    if tokenizer.spec.fingerprint != expected:
        raise CheckpointError(
            f"{where}: the generator was trained on the tokenizer {expected}, this one is {tokenizer.spec.fingerprint}"
        )
    network = parts.network.build(tokenizer.spec, num_classes)
    return Generator(tokenizer, network, parts.process.build().over(tokenizer), parts.sampling, names)


def export(run: Path, width: float | None = None) -> Path:
    """Write `run/export` from the newest sound checkpoint: averaged weights, description, model card.

    Args:
        width: of another average than the run's own, made of its snapshots as of the last; see
            `genlab.training.snapshots`.
    """
    description = _read_json(run / DESCRIPTION)
    source, _ = checkpoint.latest(run / "checkpoints")
    if source is None:
        raise CheckpointError(f"{run}: has no sound checkpoint to export")
    if width is None:
        averages = read_tensors(source / f"{_weights_stem(description)}.safetensors")
        description["images"] = checkpoint.read_state(source)["images"]
    else:
        averages, description["images"] = snapshots.reconstruct(run / "averages", "network", width)
        description["ema"] = f"power-{width:g}"
    weights, adapter = _complete(averages, source, description, trust=True)
    with whole_folder(run / "export") as folder:
        header = write(folder, description, weights, ("images",))
        if adapter:
            begun = description["finetune"]
            save_file(adapter, folder / _ADAPTER, header | {"base": begun["base"], "base_checksum": begun["checksum"]})
    return run / "export"


def write(
    folder: Path, description: dict[str, Any], weights: Mapping[str, Tensor], origin: Sequence[str]
) -> dict[str, str]:
    """Put a generator's files into the folder of an export; the header that its weights have.

    Args:
        origin: what the header repeats of the description beside the usual: where the weights come from.
    """
    _bundle_tokenizer(description["tokenizer"], folder)
    usual = ("name", "data", "image_size", "num_classes", "ema", "license", "tokenizer_fingerprint")
    header = {key: str(description[key]) for key in (*usual, *origin)}
    header |= {"format": "pt", "architecture": description["network"]["name"]}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / _WEIGHTS, header)
    write_text(folder / "config.json", json.dumps(description, indent=1))
    write_text(folder / "README.md", model_card(description, header))
    return header


def from_pretrained(source: str | Path, device: torch.device | str = "cpu", trust: bool = False) -> Generator:
    """A generator in evaluation mode from a run folder, an export folder or a hub repository ("owner/name").

    A run folder that has not finished gives the averages of its newest checkpoint. `trust` allows descriptions that
    name classes outside genlab.

    Raises:
        CheckpointError: nothing usable there; the message says what was found.
    """
    folder = locate(source)
    where = folder / ("config.json" if (folder / "config.json").exists() else DESCRIPTION)
    description = _read_json(where)
    if where.name == DESCRIPTION:
        newest, problems = checkpoint.latest(folder / "checkpoints")
        if newest is None:
            detail = f" ({problems[0]})" if problems else "; let it train until its first checkpoint"
            raise CheckpointError(f"{folder}: has no sound checkpoint yet{detail}")
        averages = read_tensors(newest / f"{_weights_stem(description)}.safetensors")
        weights, _ = _complete(averages, newest, description, trust)
    elif (folder / _ADAPTER).exists() and not (folder / _WEIGHTS).exists():
        weights = None
    else:
        weights = read_tensors(folder / _WEIGHTS)
    _unbundle_tokenizer(description["tokenizer"], folder)
    generator = build(description, str(where), trust)
    if weights is None:
        _join(generator.network, description, folder / _ADAPTER, trust)
    else:
        fill_all(generator.network.state_dict(), weights, str(folder))
    return generator.to(device)


def _complete(
    averages: dict[str, Tensor], source: Path, description: dict[str, Any], trust: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights to use of a run with a checkpoint, and of a fine-tuned network also what differs from its base."""
    averages = without_head(averages)
    begun = stored.origin(description, str(source))
    if begun is None:
        return averages, {}
    weights = {**without_head(read_tensors(source / _WEIGHTS)), **averages}  # averages leave out what is not trained
    return stored.split(build(description, str(source), trust).network, weights, begun, str(source))


def _join(network: Network, description: dict[str, Any], file: Path, trust: bool) -> None:
    """Fill `network` from the base that the description names and the difference in `file`."""
    begun = stored.origin(description, str(file))
    if begun is None:
        raise CheckpointError(f"{file}: a difference, but config.json names no base; export again")
    try:
        base = from_pretrained(begun.base, trust=trust)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: a difference from {begun.base}, which cannot be used: {error}") from error
    stored.join(network, base.network, read_tensors(file), begun, str(file))


def _bundle_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    """Copy a trained tokenizer that lies on this disk into an export, and let the description point there."""
    if tokenizer["name"] == "trained" and Path(tokenizer["path"]).exists():
        if not (folder / _BUNDLED).exists():  # where it was converted together with the network
            shutil.copytree(find_folder(tokenizer["path"]), folder / _BUNDLED)
        tokenizer |= {"path": _BUNDLED, "recipe": None}


def _unbundle_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    if tokenizer.get("path") == _BUNDLED:
        tokenizer["path"] = str(folder / _BUNDLED)


def locate(source: str | Path) -> Path:
    """The local folder that holds a generator's files; a hub repository is downloaded (files that cannot execute only).

    Raises:
        CheckpointError: no such folder, nothing of genlab in it, or the hub cannot be reached.
    """
    path = Path(source)
    if holds_tokenizer(path):
        raise CheckpointError(
            f"{path}: a tokenizer, no generator; score it with genlab evaluate, or build on it with"
            f" tokenizer={{name: trained, path: {path}}}"
        )
    for folder in (path / "export", path):
        if (folder / "config.json").exists():
            return folder
    if (path / DESCRIPTION).exists():
        return path
    if (path / PARTITION).exists():
        raise CheckpointError(
            f"{path}: several students, not joined yet; genlab export {path} does, or names what is missing"
        )
    if path.exists():
        raise CheckpointError(f"{path}: neither a run folder (no {DESCRIPTION}) nor an export (no config.json)")
    if not is_repository(str(source)):
        known = [str(file.parent) for file in sorted(Path("runs").glob(f"*/{DESCRIPTION}"))]
        raise CheckpointError(f"{source}: no such run or export{nearest(str(source), known)}")
    return download(str(source))


def push_to_hub(source: str | Path, repository: str, private: bool = True) -> str:
    """Upload an export to the Hugging Face hub; its address. Needs `hf auth login` first."""
    from huggingface_hub import HfApi

    folder = locate(source)
    if not (folder / "config.json").exists():
        folder = export(folder)
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="genlab export"))


def _weights_stem(description: dict[str, Any]) -> str:
    return checkpoint.average_stem("network", description["ema"])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; this is no run of genlab's") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: damaged (no JSON object)")
    return value
