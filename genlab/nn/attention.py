"""Multi-head self-attention over a set of tokens.

Letters: B batch, T tokens, D width, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v with one fused projection for q, k and v (Vaswani et al. 2017, eq. 1).

    Args:
        width: D, divisible by `heads`.
        heads: H.
        norm: makes a layer for width d; q and k then each pass through one of their own, per head.
        rotate: q and k [B,H,T,d] -> the same shape, applied to both after `norm`; for rotary positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Callable[[int], nn.Module] = lambda width: nn.Identity(),
        rotate: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = norm(width // heads)
        self.k_norm = norm(width // heads)
        self.rotate = rotate
        if rotate is None and isinstance(self.k_norm, nn.Identity):
            self.qkv.bias.register_hook(_without_key_third)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)  # [B,T,3,H,d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B,H,T,d]
        q, k = self.q_norm(q), self.k_norm(k)  # 2 x [B,H,T,d]
        if self.rotate is not None:
            q, k = self.rotate(q), self.rotate(k)  # 2 x [B,H,T,d]
        x = F.scaled_dot_product_attention(q, k, v)  # [B,H,T,d]
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))  # [B,T,D]


def _without_key_third(gradient: Tensor) -> Tensor:
    """The gradient [3D] of the fused bias with zeros for the key.

    A key bias adds the same to all scores of a query, which softmax ignores: its gradient is rounding noise, which Adam
    would turn into steps of the size of the learning rate, different on any number of processes.
    """
    width = len(gradient) // 3
    return torch.cat([gradient[:width], torch.zeros_like(gradient[:width]), gradient[2 * width :]])
