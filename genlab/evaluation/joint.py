"""KID and the k-NN scores of two feature sets in one sweep over their pairs: both need the same inner products.

Letters: n reference rows x, m generated rows y, d features, S subsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.evaluation.checks import check_neighbourhood
from genlab.evaluation.kernel import KernelDistance, Polynomial, SubsetSums, check_subsets, kid, kid_subsets
from genlab.evaluation.neighbours import Balls, ManifoldScores, NearestNeighbours, manifold_scores
from genlab.evaluation.pairs import clouds, visit_pairs, visit_upper

_SWEEP_PAYS = 3  # the sweep wins as long as all pairs are fewer than this many times the subsets' pairs


@dataclass(frozen=True)
class PairScores:
    """What one sweep gives."""

    kid: KernelDistance
    manifold: ManifoldScores


def _members(chosen: list[Tensor], count: int, device: torch.device) -> Tensor:
    """0/1 matrix [S,count] float32 of who is in which subset."""
    members = torch.zeros(len(chosen), count, device=device)
    for row, index in zip(members, chosen, strict=True):
        row[index.to(device)] = 1
    return members


def pair_scores(
    x: Tensor,
    y: Tensor,
    k: int = 3,
    strict: bool = False,
    subsets: int = 100,
    size: int = 1000,
    kernel: Polynomial | None = None,
    seed: int = 2020,
    fast: bool = True,
) -> PairScores:
    """KID and precision, recall, density, coverage of generated y [m,d] against reference x [n,d].

    The subsets are torch-fidelity's with y as its input 1. Precision and the others are exact (see `neighbours`). With
    `fast`, inner products of centred rows come from bfloat16 factors: KID is then off by about 1e-4 of its value at
    most (measured; its spread over subsets is far larger), else by about 1e-6.

    Raises:
        DataError: see `kid` and `manifold_scores`.
    """
    check_neighbourhood(x, y, k)
    check_subsets(x, y, subsets, size)
    if len(x) * len(y) > _SWEEP_PAYS * subsets * size**2:
        return PairScores(kid(y, x, subsets, size, kernel, seed), manifold_scores(x, y, k, strict, fast))
    x_cloud, y_cloud = clouds(x, y, fast)
    chosen = kid_subsets(len(y), len(x), subsets, size, seed)
    y_members = _members([first for first, _ in chosen], len(y), y.device)
    x_members = _members([second for _, second in chosen], len(x), x.device)
    kernel = kernel or Polynomial()
    radii, within = [], []
    for cloud, members in ((x_cloud, x_members), (y_cloud, y_members)):
        sums, neighbours = SubsetSums(cloud, cloud, members, members, kernel), NearestNeighbours(cloud, k)
        visit_upper(cloud, [sums.visit, neighbours.visit], fast)
        radii.append(neighbours.squared_radii())
        within.append(sums.total)
    cross, balls = (
        SubsetSums(x_cloud, y_cloud, x_members, y_members, kernel),
        Balls(x_cloud, y_cloud, radii[0], radii[1], strict),
    )
    visit_pairs(x_cloud, y_cloud, [cross.visit, balls.visit], fast)
    values = (within[0] + within[1]) / (size * (size - 1)) - 2 * cross.total / size**2
    return PairScores(KernelDistance(values.mean().item(), values.std(correction=0).item()), balls.scores(k))
