"""Time grids: N + 1 points in float64 on the CPU, from the start of the integration to its end."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(start: float, end: float, steps: int, shift: float = 1.0) -> Tensor:
    """`steps` + 1 points from `start` to `end`.

    Args:
        shift: k > 0 moves the points by u -> k u / (1 + (k - 1) u), u in [0, 1] being the share of the way: below 1
            there are more of them near the start, above 1 near the end, and 1 spaces them evenly.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return start + (end - start) * shift * u / (1 + (shift - 1) * u)
