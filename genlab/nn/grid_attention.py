"""Self-attention over tokens at places of a grid: rotary positions, several images or padding in a row.

Letters: B batch, N tokens, D width, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GridAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v with q and k turned by their places (FiT, section 3.2).

    Args:
        width: D, divisible by `heads`.
        heads: H.
        q_norm, k_norm: layers for the features [...,d] of queries and keys, before they turn.
        turn_values: turn the values as well.
    """

    def __init__(self, width: int, heads: int, q_norm: nn.Module, k_norm: nn.Module, turn_values: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.turn_values = turn_values
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, turn: Callable[[Tensor], Tensor], attend: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """[B,N,D] -> [B,N,D].

        Args:
            turn: [B,H,N,d] -> the same shape.
            attend: bool [B,1,N,N], which tokens see which; None: all see all.
            valid: bool [B,N,1], false for padding, whose results are nothing but the output's bias.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)  # [B,N,3,H,d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B,H,N,d]
        q, k = turn(self.q_norm(q).to(v.dtype)), turn(self.k_norm(k).to(v.dtype))  # 2 x [B,H,N,d]
        if self.turn_values:
            v = turn(v)  # [B,H,N,d]
        x = F.scaled_dot_product_attention(q, k, v, attend)  # [B,H,N,d]
        x = x.transpose(1, 2).reshape(batch, tokens, width)  # [B,N,D]
        return self.proj(x if valid is None else x * valid)  # [B,N,D]
