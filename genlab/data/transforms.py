"""From images of any shape to square ones: crop, resize, flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from genlab.core.settings import Settings
from genlab.data.decode import Unreadable
from samplers.noise import spawn

_MOST_EXTREME_ASPECT = 64
"""Longer strips would be enlarged to gigabytes before the crop."""
_RANDOM_CROP_SHARES = (0.8, 1.0)
"""The share of the shorter side that a random crop shows (Dhariwal & Nichol 2021, code)."""


class Augmentation(NamedTuple):
    """One image's random choices, each uniform on [0, 1)."""

    flip: float
    scale: float
    left: float
    top: float


class Framing(Settings):
    """How images become square: fields shared by all sources of natural images."""

    size: int = Field(256, ge=1, le=4096)
    """Side R of the images in pixels."""
    crop: Literal["adm", "random", "squash"] = "adm"
    """adm: the centre square, as ADM, DiT and SiT do; random: a random square of 80-100% of the shorter side; squash:
    the whole image without regard to its aspect."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    seed: int = 0
    """Chooses flips and random crops."""

    def draw(self, positions: Sequence[int] | None, count: int) -> Sequence[Augmentation | None]:
        """The random choices for `count` images, a pure function of (seed, position); None: no augmentation."""
        if positions is None or not (self.flip or self.crop == "random"):
            return [None] * count
        return [Augmentation(*row) for row in spawn(self.seed, positions).uniform(4).tolist()]

    def apply(self, image: Image.Image, augmentation: Augmentation | None) -> NDArray[np.uint8]:
        """A RGB image of any shape -> uint8 [R,R,3]. Raises Unreadable for extreme strips."""
        width, height = image.size
        if max(width, height) > _MOST_EXTREME_ASPECT * min(width, height):
            raise Unreadable(f"a strip of {width} x {height} pixels")
        if self.crop == "squash":
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        elif self.crop == "random" and augmentation:
            image = random_crop(image, self.size, augmentation)
        else:
            image = center_crop(image, self.size)
        pixels = np.asarray(image)  # [R,R,3]
        return pixels[:, ::-1] if self.flip and augmentation and augmentation.flip < 0.5 else pixels


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of `image` at size x size, with the filters of ADM (Dhariwal & Nichol 2021), to the pixel."""
    image = _shorter_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, augmentation: Augmentation) -> Image.Image:
    """A square of 80-100% of the shorter side, anywhere, at size x size (ADM's random crop)."""
    smallest, largest = (math.ceil(size / share) for share in reversed(_RANDOM_CROP_SHARES))
    image = _shorter_side(image, smallest + int(augmentation.scale * (largest - smallest + 1)))
    left = int(augmentation.left * (image.width - size + 1))
    top = int(augmentation.top * (image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def _shorter_side(image: Image.Image, size: int) -> Image.Image:
    """`image` resized so that its shorter side is `size`: halvings by box filter, then one bicubic step."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
