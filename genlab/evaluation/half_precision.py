"""Precision and recall as the ADM evaluator's TensorFlow graph computes them: squared distances in float16.

float16 numbers lie 0.25 to 0.5 apart where Inception's squared norms are, so ties are frequent, count as inside, and
lift both scores by 0.1 to 0.3 points. Use it to reproduce published numbers only; `neighbours` gives the right ones.

Letters: n reference rows x, m generated rows y, k neighbours, a b rows of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.evaluation.checks import check_neighbourhood
from genlab.evaluation.pairs import blocks

_ROWS = 512


def half_squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|u|^2 - 2 u.v + |v|^2 [a,b] float32, at least 0: rows, terms and result float16, sums float32.

    As guided-diffusion's DistanceBlock: where a float16 overflows, the whole tile is float32.
    """
    u, inner, v = (term.half() for term in _terms(x.half().float(), y.half().float()))
    distance = u - 2 * inner + v
    if not torch.isfinite(distance).all():
        u, inner, v = _terms(x.float(), y.float())
        distance = u - 2 * inner + v
    return distance.float().clamp(min=0)


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.square().sum(1)[:, None], x @ y.mT, y.square().sum(1)


def half_squared_radii(x: Tensor, k: int) -> Tensor:
    """Squared radii [n] float32: the (k+1)-th smallest entry of a row, its distance to itself included."""
    radii = [half_squared_distances(x[rows], x).kthvalue(k + 1, dim=1).values for rows in blocks(len(x), _ROWS)]
    return torch.cat(radii)


def half_precision_recall(x: Tensor, y: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of generated y [m,d] against reference x [n,d] by the ADM rule (k = 3, <=) in float16.

    Raises:
        DataError: fewer than k + 2 rows, other widths, NaN or Inf.
    """
    check_neighbourhood(x, y, k)
    x_radii, y_radii = half_squared_radii(x, k), half_squared_radii(y, k)
    y_inside = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    x_inside = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows in blocks(len(x), _ROWS):
        distance = half_squared_distances(x[rows], y)
        y_inside |= (distance <= x_radii[rows, None]).any(0)
        x_inside[rows] = (distance <= y_radii).any(1)
    return y_inside.double().mean().item(), x_inside.double().mean().item()
