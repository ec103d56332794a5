"""Rotary positions of one fixed grid, as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.nn.grid_rope import GridRope, Rotation, grid_places


class FixedRope(nn.Module):
    """Turns heads [B,H,T,d] of the tokens of `grid` (rows, columns), row by row; d divisible by 4.

    The first half of a head turns with the row, the second with the column (Su et al. 2021, eq. 34).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        rotation = GridRope(width).rotation(grid_places(*grid))
        self.register_buffer("cos", rotation.cos, persistent=False)  # [1,1,T,d/2]
        self.register_buffer("sin", rotation.sin, persistent=False)  # [1,1,T,d/2]

    def forward(self, x: Tensor) -> Tensor:
        """[B,H,T,d] -> [B,H,T,d]."""
        return Rotation(self.cos, self.sin)(x)
