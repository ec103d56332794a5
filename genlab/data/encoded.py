"""Sources of encoded images (files, tar members, table rows): decoding, framing, and what to do with damaged ones."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genlab.core.errors import DataError
from genlab.data.decode import Unreadable, decode
from genlab.data.source import ImageSource, digest
from genlab.data.transforms import Augmentation, Framing

_LOGGER = logging.getLogger(__name__)


class EncodedSettings(Framing):
    """Fields shared by all sources that decode images."""

    class_names: Path | None = None
    """Readable class names: a text file with one name a line, or JSON (list, or object from folder to name)."""
    max_unreadable: float = Field(0.01, ge=0.0, le=1.0)
    """The share of images that may be damaged. Each is replaced by the next readable one; beyond this, an error."""


class Items(ABC):
    """N encoded images with labels."""

    labels: NDArray[np.int64]
    """[N]; all 0 where unlabelled."""

    @abstractmethod
    def read(self, index: int) -> bytes | Path:
        """The encoded image, or the file that holds it."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in messages."""

    @abstractmethod
    def identity(self) -> bytes:
        """Changes when images are added, removed or renamed."""


class EncodedImages(ImageSource):
    """Any Items as a source of square images."""

    def __init__(self, items: Items, class_names: Iterable[str], settings: EncodedSettings):
        super().__init__(class_names, settings.size)
        self._items = items
        self._settings = settings
        # Shared memory: data workers then know of each other's findings, and the limit counts them all.
        self._damaged = torch.zeros(len(items.labels), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._items.labels)

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        augmentations = self._settings.draw(positions, len(indices))
        images = np.empty((len(indices), self.image_size, self.image_size, 3), dtype=np.uint8)  # [n,R,R,3]
        found = np.empty(len(indices), dtype=np.int64)
        for row, (index, augmentation) in enumerate(zip(indices, augmentations)):
            images[row], found[row] = self._first_readable(int(index), augmentation)
        labels = self._items.labels[found] if self.num_classes else np.zeros_like(found)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)

    def labels(self) -> Tensor:
        labels = self._items.labels
        return torch.from_numpy(labels.astype(np.int64) if self.num_classes else np.zeros(len(labels), np.int64))

    def fingerprint(self) -> str:
        framing = self._settings.model_dump_json(include=set(Framing.model_fields))
        return digest(framing, self._items.identity(), self._items.labels.tobytes())

    def unreadable(self) -> dict[str, str]:
        found = {}
        for index in self._damaged.nonzero().flatten().tolist():
            try:
                self._settings.apply(decode(self._items.read(index)), None)
            except Unreadable as error:  # decoded again because it was perhaps a data worker that found it
                found[self._items.name(index)] = str(error)
        return found

    def _first_readable(self, index: int, augmentation: Augmentation | None) -> tuple[NDArray[np.uint8], int]:
        """Image `index` uint8 [R,R,3], or else the next one that can be read; and its index."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self._damaged[candidate]:
                continue
            try:
                return self._settings.apply(decode(self._items.read(candidate)), augmentation), candidate
            except Unreadable as error:
                self._report(candidate, error)
        raise DataError(f"none of the {len(self)} images can be read, for example {self._items.name(index)}")

    def _report(self, index: int, error: Unreadable) -> None:
        _LOGGER.warning("%s is unreadable (%s); the next image takes its place", self._items.name(index), error)
        self._damaged[index] = True
        damaged = self._damaged.nonzero().flatten()
        allowed = self._settings.max_unreadable
        if len(damaged) > allowed * len(self):
            first = ", ".join(self._items.name(bad) for bad in islice(damaged.tolist(), 3))
            raise DataError(
                f"{len(damaged)} of {len(self)} images are unreadable, more than data.max_unreadable={allowed:g}"
                f" allows; first: {first} ({error}).\nMend or remove them, or allow more."
            )
