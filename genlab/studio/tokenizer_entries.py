"""The tokenizers that the studio offers, by their descriptions: nothing of their weights is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import ValidationError

from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.data.digits import Digits
from genlab.data.fractals import Fractals
from genlab.data.photos import Photos
from genlab.tokenization.storage import CONFIG, find_folder, read_config, read_description

_LARGEST = 2**20  # bytes of a description
_DATA = (Digits, Photos, Fractals)
BuiltIn: TypeAlias = Digits | Photos | Fractals


class Group(NamedTuple):
    """Codes of one depth or scale."""

    name: str
    grid: tuple[int, int]
    """(h, w)."""


@dataclass(frozen=True)
class TokenizerEntry:
    """One tokenizer."""

    id: str
    """What pages call it."""
    folder: Path
    """Where its description and its weights lie."""
    name: str
    system: str
    """As configs name it: kl, vq, multiscale, ..."""
    data: str
    """What it was trained on."""
    spec: LatentSpec

    @property
    def samples(self) -> dict[str, BuiltIn]:
        """The data that comes with genlab and has images of the tokenizer's size, its own first."""
        return built_in(self.spec.image_size, self.data)

    @property
    def groups(self) -> list[Group]:
        """The codes of an image by depth or scale; none if the latents are continuous."""
        spec = self.spec
        if spec.kind == "multiscale":
            return [Group(f"Scale {k}", (side, side)) for k, side in enumerate(spec.scales or (), 1)]
        if spec.kind == "residual":
            return [Group(f"Depth {d}", spec.grid) for d in range(1, (spec.depth or 1) + 1)]
        return [Group("Codes", spec.grid)] if spec.kind == "codes" else []

    def wants(self) -> dict[str, Any]:
        """In plain values, from which `tokenizer_of` makes the entry again in another process."""
        return {"folder": str(self.folder.resolve()), "name": self.name, "image_size": self.spec.image_size}


def built_in(size: int, first: str) -> dict[str, BuiltIn]:
    """The data that comes with genlab and has images of side `size`, by name; `first` before the others."""
    found = {}
    for kind in _DATA:
        try:
            settings = kind(size=size)
        except ValidationError:  # not made in this size
            continue
        found[settings.name] = settings
    return dict(sorted(found.items(), key=lambda item: item[0] != first))


def tokenizer_of(wants: Mapping[str, Any]) -> TokenizerEntry:
    """The entry that said `wants`. Raises CheckpointError if its tokenizer is no longer there."""
    return read_tokenizer(Path(wants["folder"]), wants["name"], wants["image_size"])


def read_tokenizer(run: Path, name: str | None = None, image_size: int | None = None) -> TokenizerEntry:
    """The tokenizer in a run, an export or a converted folder.

    Args:
        name: to call it otherwise than its description does.
        image_size: side of the images it shall work on; default: of those it was trained on.

    Raises:
        CheckpointError: naming the folder, unless genlab can build it.
    """
    folder = find_folder(run)
    file = folder / CONFIG
    try:
        if file.stat().st_size > _LARGEST:
            raise CheckpointError(f"{file}: too large to be a description")
        description = read_description(folder)
        config = read_config(description, str(folder))
        side = int(description["image_size"]) if image_size is None else image_size
        spec = replace(config.latent_spec(side), fingerprint=str(description["fingerprint"]))
        return TokenizerEntry(
            id=hashlib.sha256(f"{folder.resolve()} {side}".encode()).hexdigest()[:16],
            folder=folder,
            name=name or str(description.get("name") or run.name),
            system=config.name,
            data=str(description.get("data", "")),
            spec=spec,
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{file}: damaged or not genlab's ({type(error).__name__}: {error})"[:300]) from error
