"""The blocks of DiMR: a transformer's and a ConvNeXt's, with the norms that its ablations compare.

Letters: B batch, T tokens, h w the grid of a stage, D width, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.axial_rope import AxialRope, CosineScale
from genlab.nn.geglu import GeGlu
from genlab.nn.td_norm import TdLayerNorm, TdRmsNorm, TimeVectors, Vectors, rms_normalised

NormName: TypeAlias = Literal["td_rms", "td_layer", "rms", "first_rms"]


class RmsNorm(nn.Module):
    """As TdRmsNorm, with one weight for all times."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        """[B,...,D] -> [B,...,D]."""
        return rms_normalised(x) * self.scale


class FirstRmsNorm(nn.Module):
    """RMSNorm conditioned by the first element of axis 1: the class token, or a map's first row (an ablation)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        """[B,...,D] -> [B,...,D]."""
        return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + self.linear(x[:, :1]))


NORMS: dict[NormName, Callable[[int, TimeVectors], nn.Module]] = {
    "td_rms": TdRmsNorm,
    "td_layer": TdLayerNorm,
    "rms": lambda width, times: RmsNorm(width),
    "first_rms": lambda width, times: FirstRmsNorm(width),
}


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, without biases on q, k and v.

    Args:
        rope: cosines of turned queries and keys instead; then d must be divisible by 4.
    """

    def __init__(self, width: int, heads: int, rope: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.rope = AxialRope(heads, width // heads) if rope else None
        self.cosine = CosineScale(heads) if rope else None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,T,D] -> [B,T,D]; with rotary positions the tokens are those of `grid`, row by row."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B,H,T,d]
        if self.rope is not None and self.cosine is not None:
            turn = self.rope(grid)
            q, k = turn(self.cosine(q)), turn(self.cosine(k))  # 2 x [B,H,T,d]
        x = F.scaled_dot_product_attention(q, k, v)  # [B,H,T,d]
        return self.proj(x.transpose(1, 2).flatten(2))  # [B,T,D]


class TransformerBlock(nn.Module):
    """Attention and a gated perceptron, each normalised and added."""

    def __init__(
        self,
        width: int,
        hidden: int,
        heads: int,
        norm: Callable[[int], nn.Module],
        dropout: float = 0.0,
        rope: bool = False,
    ):
        super().__init__()
        self.norm1 = norm(width)
        self.attn = Attention(width, heads, rope)
        self.norm2 = norm(width)
        self.mlp = GeGlu(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, vectors: Vectors, grid: tuple[int, int]) -> Tensor:
        """Tokens [B,T,D] -> [B,T,D]."""
        x = x + self.dropout(self.attn(self.norm1(x, vectors), grid))
        return x + self.dropout(self.mlp(self.norm2(x, vectors)))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, not normalised, and a gated perceptron, each added."""

    def __init__(self, width: int, hidden: int, kernel: int, norm: Callable[[int], nn.Module], dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm2 = norm(width)
        self.mlp = GeGlu(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, vectors: Vectors, grid: tuple[int, int]) -> Tensor:
        """Map [B,h,w,D] -> [B,h,w,D]."""
        mixed = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B,h,w,D]
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.norm2(x, vectors)))
