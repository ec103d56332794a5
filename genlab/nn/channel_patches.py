"""Images to tokens and back without weights; the features of a token are ordered (channel, row, column).

Letters: B batch, C channels, H W image, p patch side, h = H/p, w = W/p, N = h w tokens.
"""

from __future__ import annotations

from torch import Tensor


def to_patches(x: Tensor, patch: int) -> Tensor:
    """[B,C,H,W] -> [B,N,C*p*p], tokens row by row."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B,C,h,p,w,p]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B,N,C*p*p]


def from_patches(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """[B, h*w, C*p*p] -> [B,C,H,W]; `grid` is (h, w)."""
    x = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, grid)  # [B,h,w,C,p,p]
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # [B,C,H,W]
