"""Distances between feature sets by one-dimensional slices: MIND and the approximate sliced Wasserstein distance.

Letters: n m rows, d features, P directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.evaluation.checks import check_pair

_NUMBERS = 2**24  # projections held at once


def mind_draws(n: int, m: int, width: int, directions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The random choices of torch-fidelity's MIND: rows of input 1 and of input 2 [min(n,m)], unit directions [P,d].

    One generator: first the larger set is cut by randperm, then the directions are drawn, in float32.
    """
    rng = torch.Generator().manual_seed(seed)
    least = min(n, m)
    first, second = (
        torch.randperm(count, generator=rng)[:least] if count > least else torch.arange(count) for count in (n, m)
    )
    raw = torch.randn(directions, width, generator=rng)
    return first, second, raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-12)


def mind(x: Tensor, y: Tensor, directions: int = 1000, seed: int = 2020) -> float:
    """Monge Inception Distance (Berthet et al. 2026; torch-fidelity's development version) of x [n,d] and y [m,d].

    3 d times the mean over unit directions of the squared one-dimensional Wasserstein distance; the larger set is cut
    to the size of the smaller. Projections are float64, so it agrees with the float32 tool to about 1e-6.
    """
    check_pair(x, y)
    first, second, units = mind_draws(len(x), len(y), x.shape[1], directions, seed)
    x, y, units = x[first.to(x.device)], y[second.to(y.device)], units.to(x.device, torch.float64)
    total = 0.0
    for part in units.split(max(1, _NUMBERS // len(x))):
        gap = (x.double() @ part.mT).sort(dim=0).values - (y.double() @ part.mT).sort(dim=0).values  # [n,P]
        total += gap.square().mean(0).sum().item()
    return 3 * x.shape[1] * total / directions


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Sliced W2 of x [n,d] and y [m,d] without sampling: Nadjahi et al. 2021 (arXiv 2106.15427), as in dgm-eval.

    sqrt(|mean_x - mean_y|^2 / d + (sqrt(tr S_x / d) - sqrt(tr S_y / d))^2), traces with ddof 0.
    """
    check_pair(x, y)
    x, y = x.double(), y.double()
    spread_x, spread_y = ((part - part.mean(0)).square().sum(1).mean() for part in (x, y))
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return ((mean + (spread_x.sqrt() - spread_y.sqrt()).square()) / x.shape[1]).sqrt().item()
