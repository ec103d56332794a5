"""The X of next-X prediction: how the tokens of a latent grid become a sequence of entities.

"Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", Ren et al., ICCV 2025 (arXiv 2502.20388),
section 3: a patch, a cell of neighbours, a subsample, a scale or the whole image. Of these, cells are published as
code; the order of subsamples and all about scales are genlab's own.

Letters: B batch, C channels, H W latent grid, p patch side, F = C p p features of a token, L tokens of the sequence,
P those of its first entities, G entities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.errors import ConfigError
from genlab.nn.grid_rope import grid_places

Kind: TypeAlias = Literal["patch", "cell", "subsample", "image", "scale"]


class Entities(nn.Module, ABC):
    """A sequence of G entities of `sizes` tokens, each of which is a square of `patch` x `patch` positions.

    Args:
        grid: (rows, columns) of the tokens: (H/p, W/p).
        sizes: tokens of each entity.
        places: float32 [L,2], row and column of each token, in units of the grid.
        patch: p.
    """

    places: Tensor
    owner: Tensor
    """int64 [L], the entity of each token."""

    def __init__(self, grid: tuple[int, int], sizes: Sequence[int], places: Tensor, patch: int):
        super().__init__()
        self.grid, self.sizes, self.patch = grid, tuple(sizes), patch
        self.ends = tuple(accumulate(sizes))
        self.register_buffer("places", places, persistent=False)
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(self.sizes), output_size=self.length)
        self.register_buffer("owner", owner, persistent=False)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def length(self) -> int:
        """L."""
        return self.ends[-1]

    def span(self, entity: int) -> slice:
        """The tokens of one entity."""
        return slice(self.ends[entity] - self.sizes[entity], self.ends[entity])

    def arrange(self, image: Tensor) -> Tensor:
        """Images [B,C,H,W] -> their sequences [B,L,F]."""
        return self._line_up(F.pixel_unshuffle(image, self.patch))

    def restore(self, tokens: Tensor) -> Tensor:
        """Sequences [B,L,F] -> images [B,C,H,W]."""
        return F.pixel_shuffle(self._picture(tokens), self.patch)

    def show(self, tokens: Tensor) -> Tensor:
        """What the first entities [B,P,F] tell of the image -> [B,C,H,W]; zero where they do not."""
        return F.pixel_shuffle(self._sketch(tokens), self.patch)

    def choose(self, mask: Tensor, channels: int) -> Tensor:
        """bool [B,H,W] -> bool [B,L,F]: what has a share in the chosen part of an image of C = `channels`."""
        return self._share(F.pixel_unshuffle(mask[:, None].expand(-1, channels, -1, -1).float(), self.patch)) > 0

    @abstractmethod
    def _line_up(self, x: Tensor) -> Tensor:
        """[B,F,rows,columns] -> [B,L,F]."""

    @abstractmethod
    def _picture(self, tokens: Tensor) -> Tensor:
        """[B,L,F] -> [B,F,rows,columns]."""

    @abstractmethod
    def _sketch(self, tokens: Tensor) -> Tensor:
        """[B,P,F] -> [B,F,rows,columns]."""

    @abstractmethod
    def _share(self, mask: Tensor) -> Tensor:
        """0 or 1 [B,F,rows,columns] -> 0 or 1 [B,L,F]."""


class Groups(Entities):
    """A partition: each token of the grid belongs to one entity.

    Args:
        order: int64 [L], the place in the grid, row by row, of each token of the sequence.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, grid: tuple[int, int], sizes: Sequence[int], order: Tensor, patch: int):
        column, row = grid_places(*grid)[0]
        super().__init__(grid, sizes, torch.stack([row, column], dim=1)[order].float(), patch)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    def _line_up(self, x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, self.order].mT

    def _picture(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.inverse].mT.unflatten(2, self.grid)

    def _sketch(self, tokens: Tensor) -> Tensor:
        return self._picture(F.pad(tokens, (0, 0, 0, self.length - tokens.shape[1])))

    def _share(self, mask: Tensor) -> Tensor:
        return self._line_up(mask)


class Pyramid(Entities):
    """Scales: the image averaged to one grid after another, the last of which is its own.

    Args:
        grids: (rows, columns) of each scale, coarse to fine.
    """

    def __init__(self, grids: Sequence[tuple[int, int]], patch: int):
        self.grids = tuple(grids)
        rows, columns = self.grids[-1]
        places = []
        for own_rows, own_columns in self.grids:  # centres of the areas that are averaged
            column, row = grid_places(own_rows, own_columns)[0].float() + 0.5
            places.append(torch.stack([row * (rows / own_rows), column * (columns / own_columns)], dim=1) - 0.5)
        super().__init__(self.grids[-1], [rows * columns for rows, columns in grids], torch.cat(places), patch)

    def _line_up(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, grid).flatten(2) for grid in self.grids], dim=2).mT

    def _picture(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.span(len(self) - 1)].mT.unflatten(2, self.grid)

    def _sketch(self, tokens: Tensor) -> Tensor:
        entity = self.ends.index(tokens.shape[1])
        finest = tokens[:, self.span(entity)].mT.unflatten(2, self.grids[entity])
        return F.interpolate(finest, self.grid, mode="nearest")

    def _share(self, mask: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(mask, grid).flatten(2) for grid in self.grids], dim=2).mT


def entities(
    grid: tuple[int, int],
    kind: Kind = "cell",
    size: int | None = None,
    scales: Sequence[int] | None = None,
    patch: int = 1,
) -> Entities:
    """The entities of a grid of tokens, in the order in which they are generated.

    Args:
        grid: (rows, columns) of tokens.
        size: the side of square cells, or the stride of subsamples, in tokens; by default half the shorter side.
        patch: latent positions on a side of a token.
        scales: the longer side of each scale, up to that of the grid; by default powers of two and the grid.

    Raises:
        ConfigError: cells or subsamples that do not divide the grid, scales that do not go up to it.
    """
    rows, columns = grid
    size = size or max(min(grid) // 2, 1)
    if kind in ("cell", "subsample") and (rows % size or columns % size):
        raise ConfigError(
            f"network.entity_size must divide the grid of tokens: got a {kind} of {size} for {rows} x {columns}; "
            f"try {_divisor(grid, size)}"
        )
    raster = torch.arange(rows * columns)
    match kind:
        case "patch":
            return Groups(grid, [1] * len(raster), raster, patch)
        case "image":
            return Groups(grid, [len(raster)], raster, patch)
        case "cell":
            blocks = raster.view(rows // size, size, columns // size, size)
            order = blocks.transpose(1, 2).flatten()
            return Groups(grid, [size**2] * (len(raster) // size**2), order, patch)
        case "subsample":
            order = raster.view(rows // size, size, columns // size, size).permute(1, 3, 0, 2).flatten()
            return Groups(grid, [len(raster) // size**2] * size**2, order, patch)
        case "scale":
            return Pyramid(_grids(grid, scales), patch)


def _divisor(grid: tuple[int, int], size: int) -> int:
    """The largest side up to `size` that divides both sides of the grid."""
    return max(side for side in range(1, min(size, *grid) + 1) if not (grid[0] % side or grid[1] % side))


def _grids(grid: tuple[int, int], scales: Sequence[int] | None) -> list[tuple[int, int]]:
    longer = max(grid)
    sides = list(scales) if scales else [side for power in range(12) if (side := 2**power) < longer] + [longer]
    if sides != sorted(set(sides)) or sides[0] < 1 or sides[-1] != longer:
        raise ConfigError(
            f"network.scales must go up and end at the grid of tokens: got {sides} for {grid[0]} x {grid[1]}; "
            f"the last must be {longer}"
        )
    return [(max(round(grid[0] * side / longer), 1), max(round(grid[1] * side / longer), 1)) for side in sides]
