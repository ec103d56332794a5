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


def later(grid: Tensor, start: float) -> Tensor:
    """`start` and the points of `grid` [N+1] beyond it, of which there must be some; `grid` may run up or down."""
    beyond = grid[(grid - start) * (grid[-1] - grid[0]) > 0]
    return torch.cat([beyond.new_tensor([start]), beyond])


def karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> Tensor:
    """`steps` noise levels from `highest` to `lowest`, evenly spaced in their rho-th root, then 0.

    "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022 (arXiv 2206.00364).
    """
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (highest ** (1 / rho) + u * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
