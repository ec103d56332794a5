"""Random crops of the real photographs that ship inside scikit-image and scikit-learn; nothing is downloaded.

scikit-image's are CC0, public domain, or free of known copyright restrictions. scikit-learn's are CC BY 2.0: `china` by
danielbuechele, `flower` by vultilion (both flickr.com). Some are grey.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.settings import Settings
from genlab.data.decode import Unreadable, decode
from genlab.data.source import ImageSource, Split, digest
from samplers.noise import spawn

_SCIKIT_IMAGE = ("skimage", "data")
_SCIKIT_LEARN = ("sklearn", "datasets/images")
_PHOTOGRAPHS = {
    "astronaut": (*_SCIKIT_IMAGE, "astronaut.png"),
    "brick": (*_SCIKIT_IMAGE, "brick.png"),
    "camera": (*_SCIKIT_IMAGE, "camera.png"),
    "cat": (*_SCIKIT_IMAGE, "chelsea.png"),
    "china": (*_SCIKIT_LEARN, "china.jpg"),
    "coffee": (*_SCIKIT_IMAGE, "coffee.png"),
    "coins": (*_SCIKIT_IMAGE, "coins.png"),
    "flower": (*_SCIKIT_LEARN, "flower.jpg"),
    "grass": (*_SCIKIT_IMAGE, "grass.png"),
    "gravel": (*_SCIKIT_IMAGE, "gravel.png"),
    "hubble": (*_SCIKIT_IMAGE, "hubble_deep_field.jpg"),
    "retina": (*_SCIKIT_IMAGE, "retina.jpg"),
    "rocket": (*_SCIKIT_IMAGE, "rocket.jpg"),
}
_SMALLEST_CROP = 0.3
"""Side of the smallest crop as a share of the training region's shorter side."""
_LARGE = 800
"""Photographs whose shorter side has more pixels are halved: crops of 256 pixels need no more, and are made sooner."""


class Photos(Settings):
    """Random crops of 13 photographs, class = photograph."""

    name: Literal["photos"] = "photos"
    size: int = Field(64, ge=8, le=256)
    """Side R of the crops after resizing."""
    count: int = Field(13_000, ge=1)
    """Crops per epoch; crop i is a pure function of (seed, i)."""
    seed: int = 0
    held_out: float = Field(0.25, ge=0.0, le=0.5)
    """Share of each photograph, a strip at its right or lower end, that only test crops see."""
    flip: bool = False
    """Mirror half of the crops, by position."""

    def build(self, split: Split = "train") -> ImageSource:
        """Raises DataError for the test split when nothing is held out, or photographs that are not installed."""
        if split == "test" and self.held_out == 0.0:
            raise DataError("the photos have no test split unless a part is held out; set data.held_out=0.25")
        return PhotoCrops(self, split)


class _Region(NamedTuple):
    """The part of a photograph that a split may see, and the sides of its crops in pixels."""

    image: Image.Image
    smallest: float
    largest: float


class PhotoCrops(ImageSource):
    """Square crops of random place and scale, classes in turn."""

    def __init__(self, settings: Photos, split: Split):
        super().__init__(_PHOTOGRAPHS, settings.size)
        self._settings = settings
        self._split = split
        self._regions = [_region(name, settings.held_out, split) for name in _PHOTOGRAPHS]

    def __len__(self) -> int:
        return self._settings.count

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        choices = spawn(self._settings.seed, indices).fork(int(self._split == "test")).uniform(3)  # [n,3]
        labels = torch.as_tensor(indices, dtype=torch.int64) % len(self._regions)
        crops = [self._crop(label, choice) for label, choice in zip(labels.tolist(), choices.tolist())]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # [n,3,R,R]
        if self._settings.flip and positions is not None:
            mirrored = spawn(self._settings.seed, positions).uniform() < 0.5  # [n]
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images.contiguous(), labels

    def labels(self) -> Tensor:
        return torch.arange(len(self)) % len(self._regions)

    def fingerprint(self) -> str:
        return digest(f"{self._settings.model_dump_json()} {self._split}")

    def _crop(self, label: int, choice: Sequence[float]) -> np.ndarray:
        """uint8 [R,R,3]."""
        image, smallest, largest = self._regions[label]
        scale, x, y = choice
        side = smallest * (largest / smallest) ** scale
        left, top = x * (image.width - side), y * (image.height - side)
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.image_size,) * 2, Image.Resampling.BICUBIC, box=box))


def _region(name: str, held_out: float, split: Split) -> _Region:
    """Cut out before any crop is resized: resizing reads a little beyond the crop, and must not see the other split."""
    photograph = _load(name)
    width, height = photograph.size
    if width >= height:
        border = round(width * (1.0 - held_out))
        train, test = (0, 0, border, height), (border, 0, width, height)
    else:
        border = round(height * (1.0 - held_out))
        train, test = (0, 0, width, border), (0, border, width, height)
    smallest = _SMALLEST_CROP * min(train[2:])
    image = photograph.crop(test if split == "test" else train)
    image.load()
    largest = float(min(image.size))
    return _Region(image, min(smallest, largest), largest)


def _load(name: str) -> Image.Image:
    package, folder, file = _PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"the photograph {name!r} comes with {package}, which is not installed")
    path = Path(spec.origin).parent / folder / file
    try:
        image = decode(path)
    except Unreadable as error:
        raise DataError(f"{path}: the photograph {name!r} cannot be read ({error}); reinstall {package}") from error
    return image.reduce(2) if min(image.size) > _LARGE else image
