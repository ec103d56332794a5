"""Rotary positions with learned frequencies for each head, and attention by cosines.

DiMR's variant without position tables; the frequencies' form is that of Crowson et al. 2024 (arXiv 2401.11605), section
4.2, and attention by cosines with a learned temperature that of Henry et al. 2020 (arXiv 2010.04245).

Letters: B batch, H heads, d features of a head, T tokens of a grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.grid_rope import Rotation


def cell_centres(rows: int, columns: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The (row, column) [T] each, row by row, of cells that tile [-1,1] along the longer side of a grid."""
    longer = max(rows, columns)
    row, column = (
        (2 * torch.arange(count, device=device) + 1 - count) / longer for count in (rows, columns)
    )  # [rows], [columns]
    row, column = torch.meshgrid(row, column, indexing="ij")
    return row.flatten(), column.flatten()


class AxialRope(nn.Module):
    """Frequencies of heads of `head_width` features (divisible by 4): first half by rows, second by columns."""

    def __init__(self, heads: int, head_width: int):
        super().__init__()
        logs = torch.linspace(math.log(math.pi), math.log(5 * math.pi), head_width // 4)  # [d/4]
        self.freqs_h = nn.Parameter(logs.repeat(heads, 1))  # [H,d/4], logarithms
        self.freqs_w = nn.Parameter(logs.repeat(heads, 1))  # [H,d/4]

    def forward(self, grid: tuple[int, int]) -> Rotation:
        """The rotation of the tokens of a grid (rows, columns), row by row; its angles are [1,H,T,d/2]."""
        places = cell_centres(*grid, self.freqs_h.device)  # 2 x [T]
        by_row, by_column = (
            place[:, None] * logs.float().exp()[:, None] for place, logs in zip(places, (self.freqs_h, self.freqs_w))
        )  # 2 x [H,T,d/4]
        angle = torch.cat([by_row, by_column], dim=-1).unsqueeze(0)  # [1,H,T,d/2]
        return Rotation(angle.cos(), angle.sin())


class CosineScale(nn.Module):
    """Queries or keys [B,H,T,d] to lengths that make their logits cosines times exp(log_scale), at most 100.

    The bound does not stop gradients: a scale beyond it can return.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(10.0)))

    def forward(self, x: Tensor) -> Tensor:
        bounded = self.log_scale + (self.log_scale.clamp(max=math.log(100.0)) - self.log_scale).detach()  # [H]
        length = torch.exp(0.5 * bounded - 0.25 * math.log(x.shape[-1]))  # [H]
        return F.rms_norm(x, x.shape[-1:], eps=1e-6) * length[:, None, None].to(x.dtype)
