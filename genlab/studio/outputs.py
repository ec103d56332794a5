"""Finished images on disk, for as long as a page may want them."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from genlab.studio.orders import Order
from genlab.studio.pictures import to_png


class Delivery(NamedTuple):
    """The files of one finished order."""

    images: list[Path]
    archive: Path


class Outputs:
    """A temporary folder with one unguessably named folder for each finished order; the oldest are removed.

    Args:
        largest: bytes in all; the newest order is kept in any case.
        age: seconds after which an order is removed, once another one has come.
    """

    def __init__(self, largest: int = 512 * 2**20, age: float = 3600.0):
        self._temporary = tempfile.TemporaryDirectory(prefix="genlab-studio-")
        self.root = Path(self._temporary.name).resolve()
        self._largest, self._age = largest, age

    def deliver(self, order: Order, images: Mapping[int, Tensor]) -> Delivery:
        """Write each image as PNG, and all of them as a ZIP."""
        folder = self.root / uuid.uuid4().hex
        folder.mkdir()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", order.entry.name)[:80]
        archive = folder / f"{stem}-seed{order.seed}.zip"
        files = []
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
            for index, image in sorted(images.items()):
                data = to_png(image, order.metadata(index))
                file = folder / f"{index:06d}-{order.labels[index]:04d}.png"
                file.write_bytes(data)
                zipped.writestr(file.name, data)
                files.append(file)
        self._tidy(folder)
        return Delivery(files, archive)

    def close(self) -> None:
        """Remove everything."""
        self._temporary.cleanup()

    def _tidy(self, newest: Path) -> None:
        room = self._largest - _size(newest)
        others = [folder for folder in self.root.iterdir() if folder != newest]
        for folder in sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True):
            room -= _size(folder)
            if room < 0 or time.time() - folder.stat().st_mtime > self._age:
                shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
