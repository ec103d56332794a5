"""`index.json` of a latent cache: which tokenizer made what of which images, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from genlab.core.contracts import LatentSpec
from genlab.core.errors import DataError
from genlab.core.settings import Settings
from genlab.data.source import digest

FORMAT = 1
INDEX = "index.json"


class Stored(Settings):
    """One tensor per view of an image."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "bfloat16", "uint16", "int32"]


class Shard(Settings):
    """One finished file."""

    file: str
    images: int = Field(ge=1)
    bytes: int = Field(ge=1)
    crc32: int


class Plan(Settings):
    """All that determines the content of a cache."""

    format: Literal[1] = 1
    tokenizer: dict[str, Any]
    """Its config."""
    spec: LatentSpec
    data: dict[str, Any]
    """The config of the images."""
    data_fingerprint: str
    """Identifies images and transform."""
    class_names: tuple[str, ...]
    """In the order of the labels; empty: unlabelled."""
    images: int = Field(ge=1)
    flips: bool
    """Is each image also there mirrored, encoded from its mirror image?"""
    crops: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    """Images per shard, but for the last."""
    tensors: dict[str, Stored]

    @property
    def views(self) -> int:
        """V: crops times flips; view 2c + f is crop c, mirrored if f."""
        return self.crops * (1 + self.flips)

    @property
    def ranges(self) -> list[range]:
        """The images of each shard."""
        return [
            range(first, min(first + self.shard_size, self.images)) for first in range(0, self.images, self.shard_size)
        ]

    @property
    def metadata(self) -> dict[str, str]:
        """What the header of every shard says."""
        return {"format": f"genlab latents {self.format}", "tokenizer": self.spec.fingerprint} | {
            "data": self.data_fingerprint
        }


class Index(Plan):
    """A finished cache."""

    statistics: dict[str, Any]
    """Of the raw latents' means: mean, std, channel_mean, channel_std; of codes: usage (counts), used, perplexity."""
    unreadable: dict[str, str]
    """Images that could not be read, with reasons; others took their places."""
    shards: tuple[Shard, ...]

    def fingerprint(self) -> str:
        """Identifies tokenizer, images, transform and views."""
        views = f"{self.flips} {self.crops} {sorted(self.tensors.items())}"
        return digest(self.spec.fingerprint, self.data_fingerprint, str(self.images), views)


def read_index(folder: Path) -> Index:
    """Raises DataError if there is no finished cache in `folder`, or one that this genlab cannot read."""
    file = folder / INDEX
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text)
        if isinstance(found, dict) and found.get("format") not in (FORMAT, None):
            raise DataError(
                f"{file}: format {found['format']}, this genlab reads {FORMAT}; update genlab or cache again"
            )
        return Index.model_validate_json(text)
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no finished latent cache ({INDEX} is missing); make it with `genlab cache`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: not the index of a latent cache ({place}: {first['msg']})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); make the cache again") from error


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard as far as its size tells; None: nothing."""
    file = folder / shard.file
    size = file.stat().st_size if file.is_file() else None
    if size == shard.bytes:
        return None
    return f"{file}: " + (
        "missing" if size is None else "empty" if size == 0 else f"has {size} bytes instead of {shard.bytes}"
    )


def check(index: Index, spec: LatentSpec) -> None:
    """Raises DataError unless the cache was made by the tokenizer that `spec` describes, at the same resolution."""
    if index.spec.fingerprint != spec.fingerprint:
        raise DataError(
            f"the latent cache was made by tokenizer {index.spec.fingerprint} ({_words(index.spec)}), this generator"
            f" has {spec.fingerprint} ({_words(spec)}): cache again, or train with that tokenizer"
        )
    own, other = _words(index.spec), _words(spec)
    if own != other:
        raise DataError(
            f"the latent cache of tokenizer {index.spec.fingerprint} holds {own}; this generator's tokenizer"
            f" {spec.fingerprint} makes {other}"
        )


def _words(spec: LatentSpec) -> str:
    grid = "x".join(map(str, spec.grid))
    return f"{spec.kind}, {spec.channels} channels on {grid}, images of {spec.image_size} pixels"
