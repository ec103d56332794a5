"""Images to tokens and back.

Letters: B batch, C channels, H W image, p patch side, h = H/p, w = W/p, T = h w tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """[B,C,H,W] -> [B,T,D]: each p x p patch through one Linear (a convolution of stride p), tokens row by row."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.to(self.proj.weight.dtype))  # [B,D,h,w]
        return x.flatten(2).transpose(1, 2)  # [B,T,D]


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Tokens [B, h*w, p*p*C], each ordered (row, column, channel) -> [B,C,h*p,w*p]; `grid` is (h, w)."""
    rows, columns = grid
    x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))  # [B,h,w,p,p,C]
    x = x.permute(0, 5, 1, 3, 2, 4)  # [B,C,h,p,w,p]
    return x.reshape(x.shape[0], -1, rows * patch, columns * patch)  # [B,C,H,W]
