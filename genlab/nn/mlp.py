"""The perceptrons of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU in its tanh approximation (Hendrycks & Gimpel 2016), Linear; over the last axis."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGlu(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6) with biases and one fused Linear for gate and features; over the last axis."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        gate, features = self.w12(x).chunk(2, dim=-1)  # 2 x [...,hidden]
        return self.w3(F.silu(gate) * features)
