"""The self-attention of VAR (Tian et al. 2024, arXiv 2404.02905), which its followers share.

Letters: B batch, T tokens, D width, H heads, d = D/H.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.scales import Attend

_SHARPEST = math.log(100.0)


class ScaleAttention(nn.Module):
    """softmax(a q k^T) v with a fused projection that has no key bias; who sees whom is the caller's.

    Args:
        width: D, divisible by `heads`.
        heads: H.
        unit: q and k have length 1, and a is learned for each head (at most 100, at first 4); else a = 0.25 / sqrt(d).
    """

    def __init__(self, width: int, heads: int, unit: bool):
        super().__init__()
        self.heads = heads
        self.scale = 1.0 if unit else 0.25 / math.sqrt(width // heads)
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0))) if unit else None
        """log a."""

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # [3D]
        qkv = self.mat_qkv(x)  # [B,T,3D]
        qkv = (qkv + bias.to(qkv.dtype)).unflatten(2, (3, self.heads, -1))  # [B,T,3,H,d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B,H,T,d]
        if self.scale_mul_1H11 is not None:
            q = (F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp(max=_SHARPEST).exp()).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        return self.proj(attend(q, k, v, self.scale).transpose(1, 2).flatten(2))  # [B,T,D]
