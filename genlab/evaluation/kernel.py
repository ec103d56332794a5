"""Kernel distances between feature sets: KID, KD-DINOv2 and CMMD.

The squared maximum mean discrepancy (Gretton et al. 2012, lemma 6), with the polynomial kernel and random subsets of
KID (Binkowski et al. 2018) or the Gaussian kernel of CMMD (Jayasumana et al. 2024).

Letters: n m rows, d features, S subsets of s rows, a b rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_pair
from genlab.evaluation.pairs import Cloud, blocks

Estimator: TypeAlias = Literal["biased", "unbiased", "u-statistic"]


@dataclass(frozen=True)
class Polynomial:
    """(gamma u.v + coef0)^degree; gamma None is 1/d."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """The kernel matrix [a,b] of u [a,d] and v [b,d]."""
        return (u @ v.mT).mul_(self.slope(u.shape[1])).add_(self.coef0).pow_(self.degree)

    def slope(self, width: int) -> float:
        """gamma for rows of `width` features."""
        return 1 / width if self.gamma is None else self.gamma


@dataclass(frozen=True)
class GaussianKernel:
    """exp(-|u-v|^2 / (2 sigma^2)) - 1: the constant cancels in every estimator and would only cost digits."""

    sigma: float = 10.0

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """The kernel matrix [a,b] of u [a,d] and v [b,d]."""
        squares = u.square().sum(1)[:, None] + v.square().sum(1)
        distance = squares.addmm_(u, v.mT, alpha=-2).clamp_(min=0)
        return distance.mul_(-0.5 / self.sigma**2).expm1_()


Kernel: TypeAlias = Polynomial | GaussianKernel


@dataclass(frozen=True)
class KernelDistance:
    """Mean and (biased) standard deviation over subsets; the mean may be negative, the estimator is unbiased."""

    mean: float
    std: float


def kid_subsets(n: int, m: int, subsets: int, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The index pairs (of x [s], of y [s]) that torch-fidelity 0.4.0 draws: one stream, x before y in each subset."""
    rng = np.random.RandomState(seed)  # the tools' generator

    def draw(count: int) -> Tensor:
        return torch.from_numpy(rng.choice(count, size, replace=False))

    return [(draw(n), draw(m)) for _ in range(subsets)]


def check_subsets(x: Tensor, y: Tensor, subsets: int, size: int) -> None:
    """Refuse subsets that cannot be drawn. Raises DataError."""
    check_pair(x, y, least=2, reason="KID")
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise DataError(
            f"KID: {subsets} subsets of {size} images cannot be drawn from {len(x)} and {len(y)} images;"
            f" choose a subset size from 2 to {min(len(x), len(y))}"
        )


def kid(
    x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, kernel: Kernel | None = None, seed: int = 2020
) -> KernelDistance:
    """KID of features x [n,d] and y [m,d] as torch-fidelity 0.4.0 computes it, in the features' dtype.

    x is its input 1: the order of the arguments decides which rows the subsets hold. Where precision and recall are
    wanted too, `genlab.evaluation.joint` shares the work.

    Raises:
        DataError: a subset size that cannot be drawn; other widths, NaN or Inf.
    """
    check_subsets(x, y, subsets, size)
    kernel = kernel or Polynomial()
    values = [
        mmd2(x[i.to(x.device)], y[j.to(y.device)], kernel, "unbiased", tile=size)
        for i, j in kid_subsets(len(x), len(y), subsets, size, seed)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _self_sums(x: Tensor, kernel: Kernel, tile: int) -> tuple[float, float]:
    """Sums of k(x_i, x_j) off and on the diagonal; the kernel is symmetric, so only upper tiles are computed."""
    off, diagonal = 0.0, 0.0
    parts = blocks(len(x), tile)
    for index, rows in enumerate(parts):
        for columns in parts[index:]:
            values = kernel(x[rows], x[columns])
            if rows == columns:
                here = values.diagonal().sum(dtype=torch.float64).item()
                diagonal += here
                off += values.sum(dtype=torch.float64).item() - here
            else:
                off += 2 * values.sum(dtype=torch.float64).item()
    return off, diagonal


def mmd2(x: Tensor, y: Tensor, kernel: Kernel, estimator: Estimator = "unbiased", tile: int = 2048) -> float:
    """The squared MMD of all rows of x [n,d] and y [m,d], in tiles.

    "biased" keeps both diagonals (at least 0), "unbiased" drops them, "u-statistic" drops that of x against y as well
    and needs n = m. A constant added to the kernel changes none of them.

    Raises:
        DataError: too few rows, other widths, NaN or Inf, or a u-statistic of sets that differ in size.
    """
    check_pair(x, y, least=1 if estimator == "biased" else 2, reason=f"the {estimator} MMD")
    n, m = len(x), len(y)
    if estimator == "u-statistic" and n != m:
        raise DataError(f"the u-statistic needs two sets of one size, got {n} and {m} rows")
    (off_x, diagonal_x), (off_y, diagonal_y) = _self_sums(x, kernel, tile), _self_sums(y, kernel, tile)
    cross, paired = 0.0, 0.0
    for rows in blocks(n, tile):
        for columns in blocks(m, tile):
            values = kernel(x[rows], y[columns])
            cross += values.sum(dtype=torch.float64).item()
            if rows == columns:
                paired += values.diagonal().sum(dtype=torch.float64).item()
    if estimator == "biased":
        within = (off_x + diagonal_x) / n**2 + (off_y + diagonal_y) / m**2
        return max(within - 2 * cross / (n * m), 0.0)
    within = off_x / (n * (n - 1)) + off_y / (m * (m - 1))
    if estimator == "u-statistic":
        return within - 2 * (cross - paired) / (n * (n - 1))
    return within - 2 * cross / (n * m)


def cmmd(x: Tensor, y: Tensor, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (Jayasumana et al. 2024): scale * biased MMD^2 of L2-normalised embeddings x [n,d], y [m,d].

    Computed in float64; the official code's float32 is off by about 1e-4 of the value.
    """
    return scale * mmd2(x.double(), y.double(), GaussianKernel(sigma), "biased")


class SubsetSums:
    """Kernel sums of all KID subsets at once, from the tiles that neighbours need anyway (see `pairs`).

    sum_{i in A, j in B} k_ij = a^T K b with 0/1 vectors a, b: one thin product a tile for all subsets.
    """

    def __init__(self, x: Cloud, y: Cloud, x_members: Tensor, y_members: Tensor, kernel: Polynomial) -> None:
        self.x, self.y, self.kernel = x, y, kernel
        self.x_members, self.y_members = x_members, y_members  # [S,n], [S,m] float32, 0 or 1
        self.symmetric = x is y
        self.total = torch.zeros(len(x_members), dtype=torch.float64, device=x.rows.device)  # [S]
        slope = kernel.slope(x.rows.shape[1])
        self.factor = slope * x.scale**2
        self.x_offset, self.y_offset = (slope * x.offset).float(), (slope * y.offset + kernel.coef0).float()

    def visit(self, rows: slice, columns: slice, tile: Tensor) -> None:
        base = torch.add(self.y_offset[columns], tile, alpha=self.factor).add_(self.x_offset[rows][:, None])
        values = base.pow_(self.kernel.degree)
        if self.symmetric and rows == columns:
            values.fill_diagonal_(0)
        sums = ((self.x_members[:, rows] @ values) * self.y_members[:, columns]).sum(1, dtype=torch.float64)
        self.total += 2 * sums if self.symmetric and rows != columns else sums
