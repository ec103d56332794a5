"""Distances between two predictions, one number a sample: what consistency models and reflow minimise."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Metric: TypeAlias = Literal["l1", "l2", "huber"]
HUBER = 0.00054
"""c of the pseudo-Huber distance, as a share of the square root of the number of elements (iCT, section 3.3)."""


def mean_absolute(a: Tensor, b: Tensor) -> Tensor:
    """The mean of |a - b| over the elements of each sample; a and b [B, ...] -> [B]."""
    return (a - b).abs().flatten(1).mean(1)


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """The mean of (a - b)^2 over the elements of each sample; a and b [B, ...] -> [B]."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with the sum over each sample's elements; a and b [B, ...] -> [B].

    Charbonnier et al. 1997, as "Improved Techniques for Training Consistency Models", Song & Dhariwal 2024, section
    3.3. With c = 0 it is the Euclidean norm, whose gradient is taken as 0 where a = b.
    """
    square = (a - b).square().flatten(1).sum(1)  # [B]
    if c == 0:
        return torch.where(square > 0, square.clamp(min=torch.finfo(square.dtype).tiny).sqrt(), 0.0)
    return (square + c * c).sqrt() - c


def distance(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    """The distance of that name [B]: mean absolute, mean square, or pseudo-Huber as in iCT."""
    match metric:
        case "l1":
            return mean_absolute(a, b)
        case "l2":
            return mean_square(a, b)
        case "huber":
            return pseudo_huber(a, b, HUBER * math.sqrt(a[0].numel()))
