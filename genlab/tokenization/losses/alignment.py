"""Aligning a tokenizer's latents with features of a vision model (VA-VAE, Yao et al. 2025, "Reconstruction vs.
Generation"): latents that look like such features are easier to generate.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from genlab.core.settings import Settings


def cosine_margin(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """Tokens [B,N,D] and [B,N,D] -> mean of relu(1 - margin - cos) at equal places, [B]."""
    return F.relu(1.0 - margin - F.cosine_similarity(projected, features, dim=2)).mean(1)


def distance_matrix_margin(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """Tokens [B,N,Z] and [B,N,D] -> mean of relu(|cos(z_i,z_j) - cos(f_i,f_j)| - margin) over all pairs, [B]."""
    z, f = F.normalize(latents, dim=2), F.normalize(features, dim=2)
    return F.relu((z @ z.mT - f @ f.mT).abs() - margin).mean((1, 2))


def on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch features [B,N,D] of a square grid, resampled bilinearly to [B,h*w,D] where `grid` = (h, w) is another."""
    side = math.isqrt(features.shape[1])
    if (side, side) == grid:
        return features
    maps = features.mT.unflatten(2, (side, side)).float()  # [B,D,n,n]
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False).flatten(2).mT


class AlignmentLoss(nn.Module):
    """Both terms; its linear map from latents to features learns along with the tokenizer."""

    def __init__(self, config: Alignment, latent_channels: int, feature_channels: int):
        super().__init__()
        self.config = config
        self.project = nn.Linear(latent_channels, feature_channels, bias=False)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents [B,Z,H,W] and patch features [B,N,D] of a square grid -> [B], without the weight.

        Features of another grid are resampled bilinearly to the latents'.
        """
        features = on_grid(features, (latents.shape[2], latents.shape[3]))
        with torch.autocast(latents.device.type, enabled=False):
            z, f = latents.float().flatten(2).mT, features.float()  # [B,N,Z], [B,N,D]
            cosine = cosine_margin(self.project(z), f, self.config.cosine_margin)
            return cosine + distance_matrix_margin(z, f, self.config.distance_margin)


class Alignment(Settings):
    """Latents aligned with features of a frozen vision model such as DINOv2."""

    weight: NonNegativeFloat = 0.1
    adaptive: bool = True
    """Multiply the weight by the ratio of the reconstruction's and this loss's gradients at the encoder's end."""
    cosine_margin: NonNegativeFloat = 0.5
    """Dissimilarity that a latent and its feature may have for free."""
    distance_margin: NonNegativeFloat = 0.25
    """The same for the similarities among latents and among features."""

    def build(self, latent_channels: int, feature_channels: int) -> AlignmentLoss:
        """The loss with a fresh linear map."""
        return AlignmentLoss(self, latent_channels, feature_channels)
