"""Attention in which the tokens of a group see each other and all groups before them.

Letters: B batch, H heads, L tokens, d features of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CALLS = 8
"""Up to so many groups, one call without a mask for each is quicker than one under a mask, and computes no zeros."""


def visible(sizes: Sequence[int]) -> Tensor:
    """bool [L,L], true where a query (row) sees a key (column)."""
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)), output_size=sum(sizes))
    return group[:, None] >= group[None, :]


class BlockCausal(nn.Module):
    """softmax(q k^T / sqrt(d)) v for groups of `sizes` tokens that follow each other; one object serves all layers."""

    mask: Tensor | None

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.sizes, self.ends = list(sizes), list(accumulate(sizes))
        self.single = max(sizes) == 1
        mask = None
        if len(sizes) > _CALLS and not self.single:
            mask = visible(sizes)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        """q, k and v [B,H,L,d] -> [B,H,L,d]; `dropout` is of attention weights."""
        if self.single:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        if self.mask is not None:
            return F.scaled_dot_product_attention(q, k, v, self.mask, dropout)
        parts = [
            F.scaled_dot_product_attention(own, k[:, :, :end], v[:, :, :end], dropout_p=dropout)
            for own, end in zip(q.split(self.sizes, dim=2), self.ends)
        ]
        return torch.cat(parts, dim=2)
