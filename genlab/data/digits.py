"""The 1,797 handwritten digits that ship with scikit-learn (UCI optdigits, CC BY 4.0): 8x8 pixels, 17 greys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.settings import Settings
from genlab.data.source import ImageSource, Split, digest

_SIDE = 8
_WHITE = 16


class Digits(Settings):
    """scikit-learn's handwritten digits, class = digit."""

    name: Literal["digits"] = "digits"
    size: int = Field(8, le=1024)
    """Side of the images; multiples of 8, each pixel becoming a square."""
    held_out: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of each class kept for the test split; 0: all 1,797 images train and there is no test split."""

    @field_validator("size")
    @classmethod
    def _multiple(cls, size: int) -> int:
        if size < _SIDE or size % _SIDE:
            raise ValueError(f"the digits are {_SIDE}x{_SIDE}: size must be a multiple of {_SIDE}, got {size}")
        return size

    def build(self, split: Split = "train") -> ImageSource:
        """Raises DataError for the test split of data of which nothing is held out."""
        return DigitImages(self, split)


class DigitImages(ImageSource):
    """The digits in memory."""

    def __init__(self, settings: Digits, split: Split):
        from sklearn.datasets import load_digits  # imports for a second

        if split == "test" and settings.held_out == 0.0:
            raise DataError("the digits have no test split unless some are held out; set data.held_out=0.2")
        super().__init__((str(digit) for digit in range(10)), settings.size)
        self._identity = f"{settings.model_dump_json()} {split}"
        digits = load_digits()
        chosen = _part(digits.target, settings.held_out, split)
        grey = np.rint(digits.images[chosen] * (255 / _WHITE)).astype(np.uint8)  # [N,8,8]
        factor = settings.size // _SIDE
        self._grey = torch.from_numpy(grey.repeat(factor, axis=1).repeat(factor, axis=2))  # [N,R,R]
        self._labels = torch.from_numpy(digits.target[chosen].astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._grey[chosen, None].repeat(1, 3, 1, 1), self._labels[chosen]

    def fingerprint(self) -> str:
        return digest(self._identity)


def _part(labels: NDArray[np.int64], held_out: float, split: Split) -> NDArray[np.int64]:
    """The indices of a split, in the order of the data; the same share of every class is held out."""
    test = np.zeros(len(labels), dtype=bool)
    generator = np.random.Generator(np.random.Philox(0))
    for digit in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == digit))
        test[members[: round(held_out * len(members))]] = True
    return np.flatnonzero(test if split == "test" else ~test)
