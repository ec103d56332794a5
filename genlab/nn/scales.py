"""Sequences that hold the maps of several scales, coarse to fine, each row by row; and who sees whom in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Grid: TypeAlias = tuple[int, int]
Schedule: TypeAlias = Sequence[int | Grid]
"""The scales coarse to fine: sides of squares, or (h, w)."""
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v [B,H,T,d], factor of the scores) -> [B,H,T,d]."""


def grids_of(scales: Schedule) -> tuple[Grid, ...]:
    """(h, w) of each scale."""
    return tuple((scale, scale) if isinstance(scale, int) else (scale[0], scale[1]) for scale in scales)


def lengths_of(grids: Sequence[Grid]) -> list[int]:
    """h w of each scale."""
    return [height * width for height, width in grids]


def block_causal(grids: Sequence[Grid]) -> Attend:
    """Attention of whole sequences in which a position sees its own scale and all coarser ones.

    A call for each scale on the keys up to its end: one call under a mask would compute what it hides, and keeps the
    fast kernels away.
    """
    lengths = lengths_of(grids)
    ends = list(accumulate(lengths))

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        parts = zip(q.split(lengths, dim=2), ends)
        return torch.cat([attend_to_all(part, k[:, :, :end], v[:, :, :end], scale) for part, end in parts], dim=2)

    return attend


def within_scales(grids: Sequence[Grid]) -> Attend:
    """Attention of sequences in which a position sees all of its own scale and nothing else."""
    lengths = lengths_of(grids)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        parts = zip(q.split(lengths, dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2))
        return torch.cat([attend_to_all(*part, scale) for part in parts], dim=2)

    return attend


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention without a mask."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
