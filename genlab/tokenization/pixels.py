"""The identity tokenizer: generators that work on pixels."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field
from torch import Tensor

from genlab.core.contracts import LatentSpec, Raw, Tokenizer
from genlab.core.settings import Settings
from samplers.noise import SampleRng


class PixelTokenizer(Tokenizer):
    """Images are their own tokens, shifted and scaled: tokens = (image - mean) / std.

    With `channels=1` images are reduced to their grey value (the mean of R, G, B) and shown as grey again.
    """

    def __init__(self, spec: LatentSpec):
        super().__init__()
        self.spec = spec

    def encode(self, images: Tensor) -> Tensor:
        return images.mean(dim=1, keepdim=True) if self.spec.channels == 1 else images

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        assert isinstance(raw, Tensor)
        return (raw - self.spec.mean[0]) / self.spec.std[0]

    def decode(self, tokens: Tensor) -> Tensor:
        images = tokens * self.spec.std[0] + self.spec.mean[0]
        return images.expand(-1, 3, -1, -1)


class Pixels(Settings):
    """Work on pixels, without an autoencoder."""

    name: Literal["pixels"] = "pixels"
    channels: Literal[1, 3] = 3
    """1 works on grey values."""
    mean: float = Field(default=0.0, ge=-1, le=1)
    std: float = Field(default=1.0, gt=0, le=10)

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images, known without building it."""
        identity = hashlib.sha256(f"pixels {image_size} {self.channels} {self.mean} {self.std}".encode()).hexdigest()
        return LatentSpec(
            kind="continuous",
            channels=self.channels,
            grid=(image_size, image_size),
            image_size=image_size,
            mean=(self.mean,),
            std=(self.std,),
            fingerprint=identity[:16],
        )

    def build(self, image_size: int) -> PixelTokenizer:
        return PixelTokenizer(self.latent_spec(image_size))
