"""Trained tokenizers on disk: a folder that cannot execute.

config.json              kind "tokenizer", its config, fingerprint, image size, provenance
tokenizer.safetensors    weights; the header repeats name and fingerprint
README.md                model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from genlab import __version__
from genlab.core.contracts import TrainableTokenizer
from genlab.core.errors import CheckpointError
from genlab.core.files import whole_folder, write_text
from genlab.core.hub import download, is_repository
from genlab.core.weights import checksum, fill_all, read_tensors
from genlab.tokenization.configs import AnyTokenizer, TokenizerConfig

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "tokenizer.safetensors"


def fingerprint(config: AnyTokenizer, tokenizer: TrainableTokenizer) -> str:
    """16 digits that identify weights and settings; what caches and generators are bound to."""
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(f"{settings} {checksum(tokenizer)}".encode()).hexdigest()[:16]


def save_tokenizer(
    folder: Path, config: AnyTokenizer, tokenizer: TrainableTokenizer, facts: Mapping[str, Any], card: str = ""
) -> Path:
    """Write a tokenizer's folder, atomically.

    Args:
        config: what builds it, with the standardisation that its latents need.
        facts: JSON-able provenance: name, image_size, data, license, images, source, ...
        card: README.md; a short one by default.
    """
    from safetensors.torch import save_file

    identity = fingerprint(config, tokenizer)
    description = {
        "format": FORMAT,
        "kind": "tokenizer",
        "genlab": __version__,
        **facts,
        "tokenizer": config.model_dump(mode="json"),
        "fingerprint": identity,
    }
    state = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    header = {"format": "pt", "kind": "tokenizer", "name": str(facts.get("name", "")), "fingerprint": identity}
    with whole_folder(folder) as temporary:
        save_file(state, temporary / WEIGHTS, header)
        write_text(temporary / CONFIG, json.dumps(description, indent=1))
        write_text(temporary / "README.md", card or _card(description))
    return folder


def find_folder(path: str | Path) -> Path:
    """The folder that holds a tokenizer's files: a run's export, the folder itself, or a hub repository's copy.

    Raises:
        CheckpointError: nothing usable there; the message says what to do.
    """
    local = Path(path)
    for folder in (local / "export", local):
        if (folder / CONFIG).is_file():
            return folder
    if local.exists():
        raise CheckpointError(
            f"{path}: holds no tokenizer (no export/{CONFIG}); a run exports when it ends or is stopped by Ctrl-C"
        )
    if not is_repository(str(path)):
        raise CheckpointError(f"{path}: no such run or folder")
    return download(str(path))


def holds_tokenizer(path: str | Path) -> bool:
    """Whether a local folder is a tokenizer's run, export or converted folder."""
    for file in (Path(path) / "export" / CONFIG, Path(path) / CONFIG):
        if file.is_file():
            try:
                return read_description(file.parent)["kind"] == "tokenizer"
            except CheckpointError:
                return False
    return (Path(path) / "tokenizer.json").is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """What `config.json` says. Raises CheckpointError if it is damaged or describes no tokenizer."""
    file = folder / CONFIG
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file}: missing or damaged ({error})") from error
    if isinstance(description, dict) and str(description.get("_class_name", "")).startswith("Autoencoder"):
        raise CheckpointError(f"{folder}: a diffusers folder; turn it into genlab's with `genlab convert {folder}`")
    if not isinstance(description, dict) or description.get("kind") != "tokenizer":
        raise CheckpointError(f"{file}: describes no tokenizer")
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{file}: format {description.get('format')}, this genlab reads {FORMAT}")
    return description


def read_config(description: Mapping[str, Any], where: str) -> AnyTokenizer:
    """The tokenizer's config in a description. Raises CheckpointError if this genlab cannot read it."""
    try:
        text = json.dumps(description["tokenizer"])
        return TypeAdapter[AnyTokenizer](TokenizerConfig).validate_json(text)
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{where}: not a tokenizer that this genlab can build ({error})") from error


def load_tokenizer(path: str | Path, image_size: int | None = None) -> TrainableTokenizer:
    """A trained tokenizer in evaluation mode, its weights checked against its fingerprint.

    Args:
        path: a run, an export, a folder made by `genlab convert`, or a hub repository.
        image_size: side of the images it shall work on; default: what it was trained on.

    Raises:
        CheckpointError: nothing usable there, damaged, or changed since it was saved.
    """
    folder = find_folder(path)
    description = read_description(folder)
    config = read_config(description, str(folder))
    tokenizer = config.build(image_size or int(description["image_size"]))
    fill_all(tokenizer.state_dict(), read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    found = fingerprint(config, tokenizer)
    if found != description["fingerprint"]:
        raise CheckpointError(
            f"{folder}: weights or settings were changed: they are {found}, {CONFIG} says {description['fingerprint']}."
            " Export or convert it again"
        )
    tokenizer.spec = replace(tokenizer.spec, fingerprint=found)
    return tokenizer.eval().requires_grad_(False)


def _card(description: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {value} |" for key, value in description.items() if isinstance(value, str | int | float)]
    parts = json.dumps(description["tokenizer"], indent=1)
    return "\n".join(
        [
            "---",
            "library_name: genlab",
            "tags: [image-tokenizer]",
            "---",
            "",
            f"# {description.get('name', 'tokenizer')}",
            "",
            "An image tokenizer made with genlab.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "```json",
            parts,
            "```",
            "",
        ]
    )
