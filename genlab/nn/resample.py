"""Halving and doubling maps with a small separable filter.

Letters: B batch, C channels, H W map, n length of the filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Direction: TypeAlias = Literal["up", "down"]
BOX = (1.0, 1.0)
"""2 x 2 means down, nearest neighbours up."""


class Resample(nn.Module):
    """[B,C,H,W] -> [B,C,2H,2W] or [B,C,H/2,W/2]; H and W even for the way down.

    Args:
        taps: the filter along each axis, of even length; its scale does not matter.
        padded: pad with zeros so that the size is exactly doubled or halved. Without, the way down loses the edge.
    """

    def __init__(self, direction: Direction, taps: Sequence[float] = BOX, padded: bool = True):
        super().__init__()
        self.up = direction == "up"
        self.padding = (len(taps) - 1) // 2 if padded else 0
        self.is_box = tuple(taps) == BOX and padded
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = line.outer(line) / line.sum().square() * (4 if self.up else 1)
        self.register_buffer("kernel", kernel[None, None], persistent=False)  # [1,1,n,n]

    kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.is_box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)
