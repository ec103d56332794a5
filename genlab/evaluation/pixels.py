"""Pixels as features: for small images the plain distance means something, and needs no weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from genlab.core.public_weights import FoundWeights
from genlab.evaluation.extractors import Extractor, check_images

NAME = "pixels"


class PixelFeatures(Extractor):
    """uint8 images [B,3,R,R] -> `pool` [B, 3 R R], in [0, 1]."""

    family = NAME
    dimensions: ClassVar = {"pool": 0}  # as wide as the images are
    feature_layer = "pool"
    published = False
    resize = "none, x / 255"

    def __init__(self) -> None:
        super().__init__(nn.Identity(), FoundWeights(Path(), "", official=True))

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"pool": inputs.flatten(1).float().div_(255)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        check_images(images)
        return self.embed(images)
