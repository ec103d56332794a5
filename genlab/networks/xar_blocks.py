"""The parts of xAR: a transformer block whose entities have a condition each.

Letters: B batch, T tokens, E conditions of a row (each of n = T/E tokens that follow each other), D width, H heads,
d = D/H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.adaln import modulation
from genlab.nn.grid_rope import GridRope

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""q, k, v [B,H,T,d] and the dropout of attention weights -> [B,H,T,d]."""


class Turns(nn.Module):
    """Rotary positions of a sequence, whose first half of a head's features turns with the row, the second with the
    column: [T,d/2,2], cosine and sine of each angle.

    Args:
        width: d, a multiple of 4.
        places: [T,2], row and column.
    """

    table: Tensor

    def __init__(self, width: int, places: Tensor):
        super().__init__()
        rotation = GridRope(width).rotation(places.flip(1).mT.unsqueeze(0))
        self.register_buffer("table", torch.stack([rotation.cos, rotation.sin], dim=-1)[0, 0], persistent=False)

    def forward(self, span: slice) -> Tensor:
        return self.table[span]


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """x [...,T,d] with adjacent features (2k, 2k+1) turned by the k-th of `turns` [T,d/2,2], as one product of complex
    numbers; in float32 inside and returned in its own dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [...,T,d/2]
    return torch.view_as_real(pairs * torch.view_as_complex(turns.float())).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention over whatever `attend` lets tokens see."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def project(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,D] -> q, k and v [B,H,T,d], the first two turned."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3,B,H,T,d]
        q, k = turned(qkv[:2], turns).unbind(0)  # 2 x [B,H,T,d]
        return q, k, qkv[2]

    def forward(self, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        q, k, v = self.project(x, turns)
        x = attend(q, k, v, self.dropout if self.training else 0.0)  # [B,H,T,d]
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class GeGlu(nn.Module):
    """GEGLU (Shazeer 2020, eq. 6) with exact GELU, biases and dropout; over the last axis."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1_g(x)) * self.fc1_x(x))))


class Block(nn.Module):
    """Attention and perceptron, each behind a norm without weights that the condition scales, shifts and gates."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attn = Attention(width, heads, dropout)
        self.mlp = GeGlu(width, hidden, dropout)
        self.ada_lin = modulation(width, 6)

    def forward(self, x: Tensor, m: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        """Tokens x [B,T,D] under modulations m [B,E,6D], what `ada_lin` makes of conditions -> [B,T,D]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = m.unsqueeze(2).chunk(6, dim=-1)  # 6 x [B,E,1,D]
        x = x.unflatten(1, (m.shape[1], -1))  # [B,E,n,D]
        here = torch.addcmul(shift1, _norm(x), 1 + scale1).flatten(1, 2)  # [B,T,D]
        x = torch.addcmul(x, gate1, self.attn(here, turns, attend).view_as(x))  # [B,E,n,D]
        here = torch.addcmul(shift2, _norm(x), 1 + scale2)  # [B,E,n,D]
        return torch.addcmul(x, gate2, self.mlp(here)).flatten(1, 2)  # [B,T,D]

    def keys(self, x: Tensor, m: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """The k and v [B,H,T,d] of tokens that nothing else is asked of; x and m as in `forward`, with E = 1."""
        _, _, scale, _, shift, _ = m.chunk(6, dim=-1)  # 6 x [B,1,D]
        return self.attn.project(torch.addcmul(shift, _norm(x), 1 + scale), turns)[1:]


def _norm(x: Tensor) -> Tensor:
    """RMS norm without weights, in float32 inside."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
