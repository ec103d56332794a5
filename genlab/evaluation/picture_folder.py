"""Folders of pictures to score: flat, a class per sub-folder, or as `genlab sample` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import whole_file, write_text
from genlab.data.decode import Unreadable, decode
from genlab.data.source import digest
from genlab.data.transforms import Framing
from genlab.evaluation.sources import READ_AHEAD, Part, ScoredImages, known_sorted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PLAN = "plan.json"
_SAMPLE = re.compile(r"(\d{6,})-(\d{4,})\.png")  # INDEX-CLASS.png
_THREADS = 4


class PictureFolder(ScoredImages):
    """All pictures of a folder, in the order of their paths.

    Args:
        size: crop and resize every picture to this side, by ADM's rule; None: all must have one size already.

    Raises:
        DataError: no pictures, a damaged one, or two sizes without `size`; each by name.
    """

    def __init__(self, folder: Path, size: int | None = None):
        self._folder, self._framing = folder, Framing(size=size) if size else None
        self._files, self._labels, names = _listing(folder)
        side = size or self._common_side()
        super().__init__(len(self._files), side, names)
        for file in self._files:
            if file.suffix.lower() in (".jpg", ".jpeg"):
                self.warnings.append(f"{folder}: holds JPEG files ({file.name}); their compression moves every score")
                break

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes without holding the interpreter
            cuts = [list(index[start : start + READ_AHEAD]) for start in range(0, len(index), READ_AHEAD)]
            ahead: list[list[Future[NDArray[np.uint8]]]] = []
            for number, cut in enumerate(cuts):
                for future_cut in cuts[number + len(ahead) : number + 2]:
                    ahead.append([pool.submit(self._read, self._files[i]) for i in future_cut])
                try:
                    images = torch.from_numpy(np.stack([future.result() for future in ahead.pop(0)]))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                labels = self._labels[cut] if self._labels is not None else None
                yield Part(cut, images.permute(0, 3, 1, 2).contiguous(), labels)

    def describe(self) -> dict[str, Any]:
        listing = "\n".join(f"{file.relative_to(self._folder)} {file.stat().st_size}" for file in self._files)
        framing = self._framing.model_dump(mode="json") if self._framing else None
        return {"kind": "folder", "path": str(self._folder), "files": digest(listing), "framing": framing}

    def name(self, index: int) -> str:
        return str(self._files[index])

    def class_sorted(self) -> bool:
        return known_sorted(self._labels)

    def plan(self) -> dict[str, Any]:
        """How `genlab sample` made these pictures; empty where something else did."""
        file = self._folder / PLAN
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _read(self, file: Path) -> NDArray[np.uint8]:
        try:
            picture = decode(file)
            if self._framing:
                return self._framing.apply(picture, None)
        except Unreadable as error:
            raise DataError(f"{file}: cannot be read ({error}); remove it or write it again") from error
        return np.asarray(picture)

    def _common_side(self) -> int:
        """The side that all pictures share, from their headers alone."""
        with ThreadPoolExecutor(_THREADS) as pool:
            sizes = list(pool.map(_header, self._files))
        for file, size in zip(self._files, sizes):
            if size != sizes[0]:
                raise DataError(
                    f"{self._files[0]} is {sizes[0][0]}x{sizes[0][1]}, {file} is {size[0]}x{size[1]}:"
                    " say how to make them equal with --size N (ADM's centre crop)"
                )
        width, height = sizes[0]
        if width != height:
            raise DataError(f"{self._files[0]} is {width}x{height}, not square: choose a side with --size N")
        return width


def _header(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            return picture.size
    except OSError as error:
        raise DataError(f"{file}: is no readable picture ({error}); remove it or write it again") from error


def _listing(folder: Path) -> tuple[list[Path], Tensor | None, list[str]]:
    """Files in order, their labels [N] if the folder tells them, and class names."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    pictures = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    classes = [entry for entry in entries if entry.is_dir()]
    samples = [(entry, match) for entry in pictures if (match := _SAMPLE.fullmatch(entry.name))]
    if samples and (folder / PLAN).is_file():  # grid.png lies beside them
        labels = torch.tensor([int(match[2]) for _, match in samples])
        return [entry for entry, _ in samples], labels, [str(label) for label in range(int(labels.max()) + 1)]
    if pictures:
        return pictures, None, []
    files: list[Path] = []
    found: list[int] = []
    for label, entry in enumerate(classes):
        inside = sorted(file for file in entry.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        files += inside
        found += [label] * len(inside)
    if not files:
        raise DataError(f"{folder}: holds no pictures ({' '.join(SUFFIXES)}); nothing can be scored")
    return files, torch.tensor(found), [entry.name for entry in classes]


class PictureWriter:
    """Writes scored images as `genlab sample` does: `INDEX-CLASS.png` and the plan, each whole or absent."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder = folder
        file = folder / PLAN
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != plan:
            raise DataError(f"{folder}: holds images of another plan; choose another --save-images")
        write_text(file, json.dumps(plan))

    def done(self) -> set[int]:
        """The images that are there already."""
        return {int(match[1]) for file in self.folder.iterdir() if (match := _SAMPLE.fullmatch(file.name))}

    def write(self, part: Part) -> None:
        """One PNG per image."""
        labels = part.labels if part.labels is not None else torch.zeros(len(part.index), dtype=torch.int64)
        for i, image, label in zip(part.index, part.images, labels.tolist()):
            with whole_file(self.folder / f"{i:06d}-{label:04d}.png") as temporary:
                Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(temporary, format="PNG", compress_level=1)

    def finish(self) -> None:
        """Nothing is left to do: every file is complete."""
