"""The gated perceptron of DiMR's blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GeGlu(nn.Module):
    """GEGLU (Shazeer 2020, eq. 6) with exact GELU and biases; over the last axis.

    Gate and features have Linears of their own: activations of halves of one output are slow on the CPU.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.features = nn.Linear(width, hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return self.proj(F.gelu(self.gate(x)) * self.features(x))
