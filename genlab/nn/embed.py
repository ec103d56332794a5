"""Times, classes and places as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def time_features(t: Tensor, count: int = 256, period: float = 10_000.0) -> Tensor:
    """t [B] -> [B, count] float32: cosines, then sines, of t times geometric frequencies from 1 down to 1/period."""
    half = count // 2
    exponent = -math.log(period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * exponent.exp()  # [B, count/2]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """t [B] -> [B,D]; `t` in whatever unit the weights were trained with."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        features = time_features(t, self.features)  # [B,features]
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))  # [B,D]


class LabelEmbedding(nn.Module):
    """label int64 [B] -> [B,D]."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)  # [B,D]


def sincos_1d(width: int, position: Tensor) -> Tensor:
    """position [N] -> [N, width] float64: sines, then cosines, of position times 10000^(-j / (width/2))."""
    frequency = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = position.double()[:, None] * frequency  # [N, width/2]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(width: int, grid: tuple[int, int]) -> Tensor:
    """[rows * columns, width] float32, row-major; the first half of the width encodes the column, the second the row.

    Computed in float64. `width` must be divisible by 4.
    """
    rows, columns = grid
    row = sincos_1d(width // 2, torch.arange(rows)).repeat_interleave(columns, dim=0)  # [T, D/2]
    column = sincos_1d(width // 2, torch.arange(columns)).repeat(rows, 1)  # [T, D/2]
    return torch.cat([column, row], dim=1).float()
