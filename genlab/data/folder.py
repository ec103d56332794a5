"""Images in folders: a class per sub-folder, as ImageNet is stored, or a flat folder without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from genlab.core.errors import DataError
from genlab.data.class_names import read_class_names
from genlab.data.decode import EXTENSIONS
from genlab.data.encoded import EncodedImages, EncodedSettings, Items
from genlab.data.packed import PackedStrings
from genlab.data.source import ImageSource, Split

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


class Folder(EncodedSettings):
    """A folder of images. Labels are the places of the sub-folders' names in sorted order."""

    name: Literal["folder"] = "folder"
    path: Path
    """Holds a folder per class, or the images themselves."""
    test_path: Path | None = None
    """The same for held-out images; its classes are those of `path`."""

    def build(self, split: Split = "train") -> ImageSource:
        """Raises DataError for a folder that is missing, empty or ambiguous."""
        classes = _class_folders(self.path)
        root = self.path
        if split == "test":
            if self.test_path is None:
                raise DataError(f"{self.path}: no test split; set data.test_path to a folder of held-out images")
            root = self.test_path
            unknown = set(_class_folders(root)) - set(classes)
            if unknown:
                raise DataError(f"{root}: class {min(unknown)!r} is not among the classes of {self.path}")
        readable = [os.fsencode(name).decode(errors="replace") for name in classes]
        names = read_class_names(self.class_names, readable) if self.class_names else readable
        return EncodedImages(_Files(root, classes), names, self)


class _Files(Items):
    """The image files below `root`, sorted by class and path."""

    def __init__(self, root: Path, classes: Sequence[str]):
        self._root = root
        paths: list[str] = []
        counts = []
        for name in classes or [""]:
            found = sorted(_image_files(str(root / name), f"{name}/" if name else ""))
            paths.extend(found)
            counts.append(len(found))
            if name and not found and (root / name).is_dir():
                raise DataError(f"{root / name}: a class without images (looked for {' '.join(EXTENSIONS)})")
        if not paths:
            raise DataError(f"{root}: no images there (looked for {' '.join(EXTENSIONS)})")
        self._paths = PackedStrings(paths)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def read(self, index: int) -> Path:
        return self._root / self._paths[index]

    def name(self, index: int) -> str:
        return str(self.read(index))

    def identity(self) -> bytes:
        return self._paths.tobytes()


def _class_folders(root: Path) -> list[str]:
    """The names of the sub-folders, sorted; none if the images lie in `root` itself.

    Raises:
        DataError: `root` cannot be listed, or it is not clear what its classes are.
    """
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in visible if entry.is_dir())
            loose = next((entry.name for entry in visible if _is_image(entry.name) and entry.is_file()), None)
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror}); data.path must be a folder of images") from error
    if folders and loose:
        raise DataError(f"{root}: has images ({loose}) beside class folders ({folders[0]}); keep one or the other")
    if folders and {name.lower() for name in folders} <= _SPLIT_NAMES:
        raise DataError(
            f"{root}: its sub-folders {', '.join(folders)} are splits, not classes;"
            f" set data.path={root / folders[0]} or the like, and data.test_path for held-out images"
        )
    return folders


def _image_files(folder: str, prefix: str) -> Iterator[str]:
    """Paths of the image files in `folder` and below, each with `prefix`, in no particular order."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_image(entry.name):
                    yield prefix + entry.name
                elif entry.is_dir():
                    yield from _image_files(entry.path, f"{prefix}{entry.name}/")
    except FileNotFoundError:  # a class that a test folder does not have
        return
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
