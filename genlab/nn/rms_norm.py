"""Root-mean-square norm that is safe in half precision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RmsNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a weight of its own (Zhang & Sennrich 2019), in float32 inside.

    Args:
        width: features of the last axis.
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[...,width] -> the same shape and dtype."""
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)
