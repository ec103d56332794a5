"""What every collection of images offers to training, caching and evaluation.

Letters: n images of a request, R image side, N images of a source, K classes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Split: TypeAlias = Literal["train", "test"]


class Images(ABC):
    """What is known of a collection of images, whether it can be read in any order or only from front to back.

    Args:
        class_names: one per label, duplicates allowed. A single class tells a generator nothing, so it counts as none.
        image_size: R.
    """

    def __init__(self, class_names: Iterable[str], image_size: int):
        names = tuple(class_names)
        self.class_names: tuple[str, ...] = names if len(names) > 1 else ()
        self.image_size = image_size

    @property
    def num_classes(self) -> int:
        """K; 0 means unlabelled, and every label is then 0."""
        return len(self.class_names)

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies data and transform; latent caches and reference statistics are bound to it."""

    def unreadable(self) -> dict[str, str]:
        """Name -> reason of the images found unreadable so far; others took their places."""
        return {}


class ImageSource(Images):
    """Images that can be read in any order."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Images uint8 [n,3,R,R] and labels int64 [n].

        Args:
            indices: which images, each in 0..N-1.
            positions: each image's place in the endless training sequence. Flips and random crops are a pure function
                of the source's seed and the position. None: no augmentation (reference statistics, evaluation).

        Raises:
            DataError: more images are unreadable than the source's settings allow.
        """

    def labels(self) -> Tensor:
        """int64 [N], of all images in order."""
        parts = [range(start, min(start + 1024, len(self))) for start in range(0, len(self), 1024)]
        return torch.cat([self.fetch(part)[1] for part in parts])


class Sample(NamedTuple):
    """An image not yet decoded."""

    data: bytes | Path
    label: int
    name: str


class ImageStream(Images):
    """Images that can only be read from front to back."""

    @abstractmethod
    def samples(self, seed: int, start: int) -> Iterator[Sample]:
        """The endless training sequence, a function of `seed`, from position `start` on."""

    @abstractmethod
    def decode(self, sample: Sample, position: int) -> Tensor:
        """The image of `sample`, uint8 [3,R,R], augmented as a function of `position`.

        Raises:
            Unreadable: the sample is damaged.
            DataError: more samples are damaged than the settings allow.
        """


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits that stand for `parts`."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))  # so that ("ab", "c") and ("a", "bc") differ
        hasher.update(data)
    return hasher.hexdigest()[:16]
