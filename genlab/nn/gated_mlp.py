"""A perceptron whose hidden features are gated by a second projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6) with biases, gate and features in Linears of their own; over the last axis."""

    def __init__(self, width: int, hidden: int, outputs: int | None = None):
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, outputs or width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,outputs]."""
        return self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x))
