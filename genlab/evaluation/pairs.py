"""All pairs of two feature sets, tile by tile: what kernels and neighbourhoods are made of.

Nothing of size N x N is kept. Features are centred on a common point and scaled first, which changes no distance's
order and spares rounding, and multiplied in float32, or, where `fast` asks for it, in bfloat16 (AMX) or TF32 with
float32 sums. Each set knows how far its rounded rows are from the true ones, so a reader of a tile has a rigorous bound
on the error of every distance and can redo in float64 what the bound leaves open.

Letters: n m rows, d features, a b rows of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

TILE = 1024
ROWS = 256  # rows held in float64 at once
_CHUNK = 2**16  # numbers gathered at once when pairs are looked at one by one: what a cache holds

Visit: TypeAlias = Callable[[slice, slice, Tensor], None]


@dataclass(frozen=True)
class Cloud:
    """One feature set, ready for tiles. The rows are (features - centre) / scale."""

    features: Tensor
    """[n,d] as given."""
    rows: Tensor
    """[n,d] float32 or, where bfloat16 factors are enough, that: centred, scaled and rounded; what is multiplied."""
    square: Tensor
    """[n] float64, squared norms before rounding."""
    error: Tensor
    """[n] float64, norm of what rounding took away."""
    offset: Tensor
    """[n] float64, such that the inner product of given rows i, j is scale^2 rows_i.rows_j + offset_i + offset_j."""
    scale: float

    def __len__(self) -> int:
        return len(self.rows)


def blocks(count: int, tile: int = TILE) -> list[slice]:
    """The rows 0..count in consecutive slices of at most `tile`."""
    return [slice(start, min(start + tile, count)) for start in range(0, count, tile)]


def _cloud(features: Tensor, centre: Tensor, scale: float, fast: bool) -> Cloud:
    rows = torch.empty(features.shape, dtype=torch.bfloat16 if fast else torch.float32, device=features.device)
    square = torch.empty(len(features), dtype=torch.float64, device=features.device)
    error, offset = torch.empty_like(square), torch.empty_like(square)
    for here in blocks(len(features), ROWS):
        exact = (features[here].double() - centre).div_(scale)
        rows[here] = exact.to(rows.dtype)
        square[here] = exact.square().sum(1)
        offset[here] = scale * (exact @ centre) + centre.square().sum() / 2
        error[here] = exact.sub_(rows[here]).square_().sum(1).sqrt_()
    return Cloud(features, rows, square, error, offset, scale)


def clouds(x: Tensor, y: Tensor, fast: bool = False) -> tuple[Cloud, Cloud]:
    """Two sets x [n,d] and y [m,d], centred on the mean of x and scaled to a largest norm of about 1."""
    centre = torch.stack([part.sum(0, dtype=torch.float64) for part in x.split(ROWS)]).sum(0) / len(x)
    spread = max((part - centre).norm(dim=1).max().item() for side in (x, y) for part in side.split(ROWS))
    scale = spread or 1.0
    return _cloud(x, centre, scale, fast), _cloud(y, centre, scale, fast)


@contextmanager
def _bfloat16_products(device: torch.device) -> Iterator[None]:
    """float32 matrix products may round their factors (which are bfloat16 numbers already); sums stay float32."""
    on_gpu = device.type == "cuda"
    backend = torch.backends.cuda.matmul if on_gpu else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "tf32" if on_gpu else "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def products(u: Tensor, v: Tensor, fast: bool) -> Tensor:
    """The tile [a,b] float32 of inner products of rows u [a,d] and v [b,d] of two clouds."""
    if not fast:
        return u @ v.mT
    with _bfloat16_products(u.device):
        return u.float() @ v.float().mT


def visit_pairs(x: Cloud, y: Cloud, visits: list[Visit], fast: bool = False, tile: int = TILE) -> None:
    """Show every tile of x against y to each visitor, which must not change it."""
    for rows in blocks(len(x), tile):
        _visit_row(x.rows[rows].float(), rows, y, blocks(len(y), tile), visits, fast)


def visit_upper(x: Cloud, visits: list[Visit], fast: bool = False, tile: int = TILE) -> None:
    """Show the tiles of x against itself on the diagonal, then those above it, which stand for their mirrors too."""
    parts = blocks(len(x), tile)
    for rows in parts:
        _visit_row(x.rows[rows].float(), rows, x, [rows], visits, fast)
    for number, rows in enumerate(parts):
        _visit_row(x.rows[rows].float(), rows, x, parts[number + 1 :], visits, fast)


def _visit_row(u: Tensor, rows: slice, y: Cloud, parts: list[slice], visits: list[Visit], fast: bool) -> None:
    for columns in parts:
        tile_products = products(u, y.rows[columns], fast)
        for visit in visits:
            visit(rows, columns, tile_products)


def squared_distances(x: Cloud, y: Cloud, rows: slice, columns: slice, tile: Tensor) -> Tensor:
    """Squared distances [a,b] float32, scaled, of a tile of inner products: |u|^2 - 2 u.v + |v|^2, perhaps below 0."""
    return torch.add(y.square[columns].float(), tile, alpha=-2).add_(x.square[rows].float()[:, None])


def _slack(width: int, norm: Tensor, error: Tensor, other_norm: Tensor, other_error: Tensor) -> Tensor:
    """Cauchy-Schwarz on what rounding took away, d eps |u||v| for the sum, and a few eps for the norms."""
    eps = torch.finfo(torch.float32).eps
    product = error * other_norm + (norm + error) * other_error + width * eps * norm * other_norm
    return 2 * product + 4 * eps * (norm + other_norm) ** 2


def distance_slack(x: Cloud, y: Cloud) -> Tensor:
    """How far the tiles' squared distances of each row of x to any row of y may be off, [n] float64, scaled."""
    return _slack(x.rows.shape[1], x.square.sqrt(), x.error, y.square.max().sqrt(), y.error.max())


def pair_slack(x: Cloud, i: Tensor, y: Cloud, j: Tensor) -> Tensor:
    """The same for the pairs i, j int64 [...] alone, which is tighter."""
    return _slack(x.rows.shape[1], x.square[i].sqrt(), x.error[i], y.square[j].sqrt(), y.error[j])


def exact_squared_distances(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """|x_i - y_j|^2 [p] float64 for the pairs i, j int64 [p], by differences: the same for (i,j) and (j,i)."""
    chunk = max(1, _CHUNK // x.shape[1])
    parts = [
        (x.index_select(0, a).double() - y.index_select(0, b)).square_().sum(1)
        for a, b in zip(i.split(chunk), j.split(chunk), strict=True)
    ]
    return torch.cat(parts) if parts else x.new_empty(0, dtype=torch.float64)
