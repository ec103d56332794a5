"""RIGID's score of every image as a feature of one number, so that it shares the pass with the other metrics."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from genlab.core.errors import ConfigError
from genlab.core.public_weights import FoundWeights
from genlab.evaluation.extractors import Extractor, check_images, load_extractor
from genlab.evaluation.extractors.base import NormalisingExtractor
from genlab.evaluation.rigid import RigidSettings, rigid_scores

_ENCODERS = {"rigid_dinov2": "dinov2_rigid", "rigid_efflite0": "efflite0"}  # the paper's, and one that is always here


class RigidFeatures(Extractor):
    """uint8 images [B,3,H,W] -> `movement` [B,1]: 1 - RIGID's score, which float32 holds to more digits.

    An image's noise depends on its content alone, so scores change neither with batches nor with order. Each costs
    1 + draws passes of the encoder.
    """

    family = "rigid"
    dimensions: ClassVar = {"movement": 1}
    feature_layer = "movement"
    network: NormalisingExtractor

    def __init__(self, encoder: NormalisingExtractor, settings: RigidSettings | None = None):
        super().__init__(encoder, FoundWeights(Path(), encoder.checksum, encoder.official))
        self.settings = settings or RigidSettings()
        self.resize = f"{encoder.resize}; noise {self.settings}"
        self.banner = "" if encoder.published else "RIGID on EfficientNet-Lite0 (rigid_efflite0) is not the paper's."

    @property
    def name(self) -> str:
        return f"rigid_{self.network.name.removesuffix('_rigid')}"

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        scores = rigid_scores(self.network, inputs, _identities(inputs), self.settings)
        return {"movement": (1.0 - scores)[:, None]}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        check_images(images)
        return self.embed(images)


def load_rigid(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> RigidFeatures:
    """RIGID on the encoder that `name` says: rigid_dinov2 (the paper's) or rigid_efflite0 (offline, named as such).

    Raises:
        ConfigError: another name.
        WeightsUnavailable: no weights.
    """
    if name not in _ENCODERS:
        raise ConfigError(f"rigid: there is no encoder {name.removeprefix('rigid_')!r}; there are dinov2 and efflite0")
    encoder = load_extractor(_ENCODERS[name], weights, device)
    assert isinstance(encoder, NormalisingExtractor)
    return RigidFeatures(encoder)


def _identities(images: Tensor) -> Tensor:
    """A number [B] for each image's content."""
    rows = images.cpu().flatten(1).numpy()
    return torch.tensor([zlib.crc32(row.tobytes()) for row in rows], dtype=torch.int64)
