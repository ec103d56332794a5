"""WebDataset shards on local disks: tar files of samples, `NAME.jpg` beside `NAME.cls` or `NAME.json`.

An index of where each image lies makes shards as random-access as a folder, so the order of training is as exact.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from genlab.core.errors import DataError
from genlab.data.class_names import read_class_names
from genlab.data.decode import EXTENSIONS
from genlab.data.encoded import EncodedImages, EncodedSettings, Items
from genlab.data.packed import PackedStrings
from genlab.data.source import ImageSource, Split

_LABEL_EXTENSIONS = (".cls", ".json")


class WebDataset(EncodedSettings):
    """Tar shards in the WebDataset layout."""

    name: Literal["webdataset"] = "webdataset"
    shards: str
    """A folder of .tar files or a pattern: `/data/train-{0000..1023}.tar`, `/data/*.tar`."""
    test_shards: str | None = None
    """The same for held-out images."""
    json_label: str = "label"
    """The field of .json members that holds the label; .cls members hold the label itself."""
    labelled: bool = True
    """False: ignore labels."""

    def build(self, split: Split = "train") -> ImageSource:
        """Raises DataError for shards that are missing, compressed, truncated or inconsistent."""
        items = _Members(_shard_paths(self.shards), self)
        classes = int(items.labels.max()) + 1 if self.labelled else 0
        names = read_class_names(self.class_names) if self.class_names else tuple(map(str, range(classes)))
        if split == "test":
            if self.test_shards is None:
                raise DataError(f"{self.shards}: there is no test split; set data.test_shards")
            items = _Members(_shard_paths(self.test_shards), self)
        if self.labelled and items.labels.max() >= len(names):
            raise DataError(f"label {items.labels.max()} is out of range: there are {len(names)} classes")
        return EncodedImages(items, names if self.labelled else (), self)


class _Entry(NamedTuple):
    """One image inside a shard."""

    key: str
    offset: int
    size: int
    label: int


class _Members(Items):
    """The images of all shards, in the order of the shards and of their members."""

    def __init__(self, shards: Sequence[Path], settings: WebDataset):
        self._shards = shards
        found = [list(_entries(shard, settings)) for shard in shards]
        entries = list(itertools.chain.from_iterable(found))
        if not entries:
            raise DataError(f"{settings.shards}: no images there (looked for {' '.join(EXTENSIONS)})")
        self._keys = PackedStrings(entry.key for entry in entries)
        self._extents = np.array([(entry.offset, entry.size) for entry in entries], dtype=np.int64)  # [N,2]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int64), [len(part) for part in found])
        self.labels = np.array([entry.label for entry in entries], dtype=np.int64)

    def read(self, index: int) -> bytes:
        offset, size = self._extents[index].tolist()
        with self._shards[self._shard[index]].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        return f"{self._shards[self._shard[index]]}:{self._keys[index]}"

    def identity(self) -> bytes:
        return self._keys.tobytes() + self._extents.tobytes()


def _shard_paths(pattern: str) -> list[Path]:
    """The tar files that `pattern` stands for, in order."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(f"{pattern}: shards are read from local disks; download them, or use data.name=huggingface")
    if Path(pattern).is_dir():
        paths = sorted(Path(pattern).glob("*.tar"))
    else:
        parts = list(expand_braces(pattern))
        paths = [Path(path) for part in parts for path in (_matches(part) if "*" in part else [part])]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing or not paths:
        raise DataError(f"{missing or pattern}: no such shard; data.shards names a folder of .tar files or a pattern")
    return paths


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    return sorted(path.parent.glob(path.name))


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{00..02}` -> a00 a01 a02, `{x,y}` -> x y; several groups multiply."""
    group = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not group:
        yield pattern
        return
    first, last, choices = group.groups()
    if choices is None:
        values = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        values = choices.split(",")
    for value in values:
        yield from expand_braces(pattern[: group.start()] + value + pattern[group.end() :])


def _entries(shard: Path, settings: WebDataset) -> Iterator[_Entry]:
    """The images of one shard. Members of a sample stand together and share their name up to the first dot."""
    try:
        with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
            length = shard.stat().st_size
            members = (member for member in archive if member.isfile())
            for key, sample in itertools.groupby(members, lambda member: _split_name(member.name)[0]):
                by_extension = {_split_name(member.name)[1]: member for member in sample}
                image = next((by_extension[extension] for extension in EXTENSIONS if extension in by_extension), None)
                if image is not None:
                    if image.offset_data + image.size > length:
                        raise tarfile.ReadError(f"it ends within {image.name}")
                    label = _label(shard, key, by_extension, file, settings) if settings.labelled else 0
                    yield _Entry(key, image.offset_data, image.size, label)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: not a whole, uncompressed tar file ({error})") from error


def _split_name(name: str) -> tuple[str, str]:
    """`dir/0001.seg.png` -> (`dir/0001`, `.seg.png`)."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return folder + slash + stem, (dot + extension).lower()


def _label(shard: Path, key: str, sample: dict[str, tarfile.TarInfo], file: IO[bytes], settings: WebDataset) -> int:
    extension = next((extension for extension in _LABEL_EXTENSIONS if extension in sample), None)
    if extension is None:
        raise DataError(f"{shard}:{key}: has neither .cls nor .json; set data.labelled=false for images without labels")
    file.seek(sample[extension].offset_data)
    content = file.read(sample[extension].size)
    try:
        label = int(content if extension == ".cls" else json.loads(content)[settings.json_label])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{shard}:{key}{extension}: no integer label ({settings.json_label!r})") from error
    if label < 0:
        raise DataError(f"{shard}:{key}{extension}: label {label}; set data.labelled=false to ignore labels")
    return label
