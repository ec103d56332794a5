"""Rotary positions on a grid, and the training-free ways to use a network on larger grids than it was trained on.

"RoFormer", Su et al. 2021 (arXiv 2104.09864), eq. 34, for each axis on its own; "FiT", Lu et al. 2024 (arXiv
2402.12376), section 3.3, for the extrapolation modes. NTK-aware, by-parts and YaRN are those of Peng et al. 2023 (arXiv
2309.00071), sections 3.1 to 3.4. Magnitudes and their factors of 2 are those of FiTv2's released code.

Letters: B batch, N tokens, H heads, d features of a head, a = d/2 features of an axis, F = a/2 frequencies of an axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Extrapolation: TypeAlias = Literal[
    "normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"
]
_BASE = 10_000.0


class Rotation(NamedTuple):
    """Angles of all tokens; adjacent features (2k, 2k+1) of a head turn by the k-th."""

    cos: Tensor
    """[B or 1, 1, N, d/2]"""
    sin: Tensor
    """[B or 1, 1, N, d/2]"""

    def __call__(self, x: Tensor) -> Tensor:
        """x [B,H,N,d] turned, in float32 inside and returned in its own dtype."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)  # 2 x [B,H,N,d/2]
        turned = [even * self.cos - odd * self.sin, odd * self.cos + even * self.sin]
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)  # [B,H,N,d]


@dataclass(frozen=True)
class GridRope:
    """Rotary positions for heads of `head_width` features, a multiple of 4, at one scaling of the grid.

    The first half of a head turns with the row, the second with the column.
    """

    head_width: int
    mode: Extrapolation = "normal"
    decoupled: bool = False
    """Scale rows and columns each by its own length ("Vision" NTK and YaRN); else both by the longer."""
    trained: int = 16
    """Tokens on a side of the grids that were trained."""
    target: tuple[int, int] = (16, 16)
    """(rows, columns) of the grids that the network is used on."""

    def rotation(self, grid: Tensor, size: Tensor | None = None) -> Rotation:
        """The rotation of tokens at `grid` int [B,2,N] (columns, then rows).

        Args:
            size: the (rows, columns) [B,N,2] or [B,1,2] of the image of each token, in place of `target`; for modes
                without a magnitude.
        """
        if size is None:
            size = torch.tensor([self.target], device=grid.device)  # [1,2]
        by_row, by_column = self.frequencies(size)  # 2 x [B,N|1,F]
        column, row = grid.to(by_row.dtype).unsqueeze(-1).unbind(1)  # 2 x [B,N,1]
        angle = torch.cat([row * by_row, column * by_column], dim=-1).unsqueeze(1)  # [B,1,N,d/2]
        magnitude = self.magnitude()
        return Rotation(angle.cos() * magnitude, angle.sin() * magnitude)

    def frequencies(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """The frequencies of rows and of columns, float32 [...,F] each, for grids of `size` [...,2] (rows, columns)."""
        length = size.double() if self.decoupled else size.double().amax(-1, keepdim=True).expand(size.shape)
        scale = (length / self.trained).clamp(min=1)  # [...,2]
        return self._scaled(scale[..., :1]).float(), self._scaled(scale[..., 1:]).float()

    def magnitude(self) -> float:
        """What lengthens every query and key, and so the logits twice."""
        match self.mode:
            case "yarn":
                return yarn_magnitude(self.target, self.trained)
            case "ntk-aware-pro1":
                return length_magnitude(2 * max(self.target), self.trained)
            case "ntk-aware-pro2":
                return length_magnitude(2 * self.target[0] * self.target[1], self.trained**2)
            case _:
                return 1.0

    def _scaled(self, scale: Tensor) -> Tensor:
        """Frequencies [...,F] of one axis for grids `scale` [...,1] times as long as trained."""
        width = self.head_width // 2
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=scale.device) / width  # [F]
        plain = _BASE**-exponent  # [F]
        match self.mode:
            case "normal":
                return plain.expand(*scale.shape[:-1], -1)
            case "linear":
                return plain / scale
            case "ntk-aware" | "ntk-aware-pro1" | "ntk-aware-pro2":
                return _ntk(scale, exponent, width)
            case "yarn":
                return torch.lerp(plain / scale, plain.expand(*scale.shape[:-1], -1), self._kept(32, 1, exponent))
            case "ntk-by-parts":
                ntk = _ntk(scale, exponent, width)
                blend = torch.lerp(plain / scale, ntk, self._kept(1.25, 0.75, exponent))
                return torch.lerp(blend, plain.expand_as(blend), self._kept(16, 2, exponent))

    def _kept(self, fast: float, slow: float, exponent: Tensor) -> Tensor:
        """How much of each frequency is kept [F]: all of what turns `fast` times over the trained length, nothing of
        what turns `slow` times or less, and a ramp between (YaRN, definition 2)."""
        width = self.head_width // 2

        def index(turns: float) -> float:
            return width * math.log(self.trained / (2 * math.pi * turns)) / (2 * math.log(_BASE))

        low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), width - 1)
        span = high - low or 0.001
        place = exponent * width / 2  # 0, 1, ..., F-1
        return 1 - ((place - low) / span).clamp(0, 1)


def _ntk(scale: Tensor, exponent: Tensor, width: int) -> Tensor:
    """The base raised so that the slowest frequency is divided by `scale` [...,1] and the fastest kept -> [...,F]."""
    return (_BASE * scale ** (width / (width - 2))) ** -exponent


def yarn_magnitude(target: tuple[int, int], trained: int) -> float:
    """YaRN, eq. 22."""
    return 0.1 * math.log(max(max(target) / trained, 1.0)) + 1.0


def length_magnitude(length: int, trained: int) -> float:
    """sqrt(ln length / ln trained) where longer (FiTv2, section 3.5, whose code counts double `length`)."""
    return math.sqrt(math.log(length) / math.log(trained)) if length > trained else 1.0


def grid_places(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """The places int64 [1,2,N] (columns, then rows) of a full grid's tokens, row by row."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([column.flatten(), row.flatten()]).unsqueeze(0)
