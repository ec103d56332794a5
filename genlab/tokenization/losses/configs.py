"""What a tokenizer's reconstructions are held to: a weighted sum of named errors."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from genlab.core.settings import Settings
from genlab.tokenization.losses.ms_ssim import choose_levels, exponents, ms_ssim_loss, smoothed_l1
from genlab.tokenization.losses.perceptual import Perceptual


class ReconstructionLoss(nn.Module):
    """The terms with a weight above 0, for images of one size; holds frozen networks only, always in eval mode."""

    def __init__(self, config: ReconstructionLosses, image_size: int):
        super().__init__()
        self.config = config
        self.weights = config.weights
        self.exponents: tuple[float, ...] = ()
        if config.ms_ssim:
            self.exponents = exponents(choose_levels(image_size, config.ms_ssim_levels, config.ms_ssim_window))
        self.distance = None
        if config.perceptual is not None and config.perceptual.weight:
            self.distance = config.perceptual.build(image_size)

    def forward(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Images and reconstructions [B,3,R,R] in [-1,1] -> each term unweighted, and the weighted "total", all [B]."""
        terms = {name: self._term(name, images, reconstruction) for name in self.weights}
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum(0)
        return {**terms, "total": total}

    def _term(self, name: str, images: Tensor, reconstruction: Tensor) -> Tensor:
        if name == "l1" and self.config.l1_sigma:
            return smoothed_l1(images, reconstruction, self.config.l1_sigma)
        if name == "l1":
            return (images - reconstruction).float().abs().mean((1, 2, 3))
        if name == "l2":
            return (images - reconstruction).float().square().mean((1, 2, 3))
        if name == "ms_ssim":
            return ms_ssim_loss(images, reconstruction, self.exponents, self.config.ms_ssim_window)
        assert self.distance is not None
        return cast(Tensor, self.distance(images, reconstruction))


class ReconstructionLosses(Settings):
    """Weights of the errors; those with weight 0 are not computed."""

    l1: NonNegativeFloat = 1.0
    """Of the mean absolute error, of images in [-1,1]."""
    l1_sigma: NonNegativeFloat = 0.0
    """Smooth the absolute error with a Gaussian of so many pixels first (Zhao et al. 2017, beside MS-SSIM)."""
    l2: NonNegativeFloat = 0.0
    """Of the mean squared error."""
    ms_ssim: NonNegativeFloat = 0.0
    """Of 1 - MS-SSIM, which is blind to shifts of brightness: use it beside l1."""
    ms_ssim_levels: int | None = Field(default=None, ge=1, le=5)
    """Default: as many as the images have, at most 5."""
    ms_ssim_window: Literal[7, 11] = 11
    """7 for small images."""
    perceptual: Perceptual | None = Perceptual()

    @property
    def weights(self) -> dict[str, float]:
        """Weights above 0, by the names of the terms."""
        perceptual = self.perceptual.weight if self.perceptual else 0.0
        every = {"l1": self.l1, "l2": self.l2, "ms_ssim": self.ms_ssim, "perceptual": perceptual}
        return {name: weight for name, weight in every.items() if weight}

    @model_validator(mode="after")
    def _something(self) -> ReconstructionLosses:
        if not self.weights:
            raise ValueError("no reconstruction loss has a weight: give l1, l2, ms_ssim or perceptual one")
        return self

    def build(self, image_size: int) -> ReconstructionLoss:
        """The losses for R x R images.

        Raises:
            ConfigError: images too small for what is asked.
            WeightsUnavailable: a perceptual network whose weights are neither here nor to be had.
        """
        return ReconstructionLoss(self, image_size)
