"""k-nearest-neighbour scores: precision, recall, density, coverage, realism, AuthPct.

Kynkaanniemi et al. 2019 (precision, recall, realism), Naeem et al. 2020 (density, coverage), Alaa et al. 2022
(AuthPct).
The radius of a point is the distance to its k-th neighbour in its own set, itself left out.

Tiles of float32 (or, with `fast`, bfloat16) distances settle nearly every comparison, and the few that their error
bound leaves open are redone in float64. So scores are those of float64 whatever the speed, ties included.

Letters: n reference rows x, m generated rows y, d features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_neighbourhood, check_pair
from genlab.evaluation.pairs import (
    ROWS,
    Cloud,
    blocks,
    clouds,
    distance_slack,
    exact_squared_distances,
    pair_slack,
    products,
    squared_distances,
    visit_pairs,
    visit_upper,
)

_SPARE = 12  # candidates kept beyond k, so that rounding hardly ever hides the true k-th neighbour
_DIRECT = "donot_use_mm_for_euclid_dist"  # torch.cdist by differences
_WAITING = 2**18  # candidates that may wait to be sorted in
_ROUND_UP = 1 + 2**-22  # keeps a bound a bound in float32


class NearestNeighbours:
    """The k nearest neighbours of each row within its own set: a visitor of the upper tiles (`visit_upper`).

    A tile on the diagonal gives each of its rows a first list of candidates, so of the other tiles only what is nearer
    than its last one is looked at. That waits until it is much, then all lists are brought up to date at once.
    """

    def __init__(self, cloud: Cloud, k: int) -> None:
        self.cloud, self.k = cloud, k
        self.keep = min(k + _SPARE, len(cloud) - 1)
        device = cloud.rows.device
        self.distance = torch.full((len(cloud), self.keep), torch.inf, device=device)  # approximate, scaled
        self.index = torch.zeros(len(cloud), self.keep, dtype=torch.int64, device=device)
        self.limit = torch.full((len(cloud),), torch.inf, device=device)  # distance of the last candidate
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, their neighbours, distances

    def visit(self, rows: slice, columns: slice, tile: Tensor) -> None:
        distance = squared_distances(self.cloud, self.cloud, rows, columns, tile)
        if rows == columns:
            width = min(self.keep, len(distance) - 1)
            self.distance[rows, :width], place = distance.fill_diagonal_(torch.inf).topk(width, largest=False)
            self.index[rows, :width] = place + rows.start
            self.limit[rows] = self.distance[rows].amax(1)
            return
        i, j = (distance <= self.limit[rows][:, None]).nonzero(as_tuple=True)
        self.waiting.append((i + rows.start, j + columns.start, distance[i, j]))
        i, j = (distance <= self.limit[columns]).nonzero(as_tuple=True)
        self.waiting.append((j + columns.start, i + rows.start, distance[i, j]))
        if sum(len(row) for row, _, _ in self.waiting) > _WAITING:
            self._settle()

    def _settle(self) -> None:
        """Keep the nearest `keep` candidates of each row, those that waited included."""
        every = torch.arange(len(self.cloud), device=self.index.device).repeat_interleave(self.keep)
        self.waiting.append((every, self.index.flatten(), self.distance.flatten()))
        row, index, distance = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        order = distance.argsort()
        order = order[row[order].argsort(stable=True)]  # by row, then by distance
        row = row[order]
        first = torch.searchsorted(row, torch.arange(len(self.cloud), device=row.device))
        rank = torch.arange(len(row), device=row.device) - first[row]
        kept = rank < self.keep
        self.index[row[kept], rank[kept]] = index[order][kept]
        self.distance[row[kept], rank[kept]] = distance[order][kept]
        self.limit = self.distance.amax(1)

    def squared_radii(self) -> Tensor:
        """Squared distance to the k-th neighbour [n], float64 exact, in the features' own scale."""
        self._settle()
        cloud, features = self.cloud, self.cloud.features
        row = torch.arange(len(cloud), device=self.index.device)[:, None].expand_as(self.index)
        distance, slack = self.distance.double(), pair_slack(cloud, row, cloud, self.index)
        least, most = distance - slack, distance + slack
        low = least.kthvalue(self.k, dim=1, keepdim=True).values  # the true k-th is not below this
        high = most.kthvalue(self.k, dim=1, keepdim=True).values  # nor above this
        open_ = (most >= low) & (least <= high)
        exact = torch.full_like(distance, torch.inf)
        exact[most < low] = -torch.inf
        exact[open_] = exact_squared_distances(features, row[open_], features, self.index[open_])
        radii = exact.kthvalue(self.k, dim=1).values
        if self.keep < len(features) - 1:
            self._redo(radii, (distance.amax(1) - distance_slack(cloud, cloud)) * cloud.scale**2)
        return radii

    def _redo(self, radii: Tensor, unseen: Tensor) -> None:
        """Compute in full the radii [n] that a row outside the candidates, at `unseen` [n] or beyond, may undercut."""
        features = self.cloud.features
        for doubtful in ((radii > unseen) & (radii > 0)).nonzero().flatten().split(64):
            some = features[doubtful].double()
            others = [torch.cdist(some, part.double(), compute_mode=_DIRECT) for part in features.split(ROWS)]
            nearest = torch.cat(others, dim=1).kthvalue(self.k + 1, dim=1).values  # + 1: the row itself
            radii[doubtful] = nearest.square()


class Balls:
    """Which points lie in which balls of the other set: a visitor of the tiles of x against y (`visit_pairs`).

    `strict` (prdc, dgm-eval) asks for distances below the radius; otherwise (ADM, torch-fidelity) equal ones count.
    """

    def __init__(self, x: Cloud, y: Cloud, x_radii: Tensor, y_radii: Tensor, strict: bool) -> None:
        self.x, self.y, self.strict = x, y, strict
        self.x_radii, self.y_radii = x_radii, y_radii  # squared, float64
        self.x_reach = (x_radii / x.scale**2 + distance_slack(x, y)).float() * _ROUND_UP
        self.y_reach = (y_radii / x.scale**2 + distance_slack(y, x)).float() * _ROUND_UP
        device = x.rows.device
        self.y_in_x_balls = torch.zeros(len(y), dtype=torch.int64, device=device)
        self.x_balls_hit = torch.zeros(len(x), dtype=torch.bool, device=device)
        self.x_in_y_ball = torch.zeros(len(x), dtype=torch.bool, device=device)

    def visit(self, rows: slice, columns: slice, tile: Tensor) -> None:
        distance = squared_distances(self.x, self.y, rows, columns, tile)
        perhaps = (distance <= self.x_reach[rows][:, None]).logical_or_(distance <= self.y_reach[columns])
        i, j = perhaps.nonzero(as_tuple=True)
        near = distance[i, j].double()
        i, j = i + rows.start, j + columns.start
        slack = pair_slack(self.x, i, self.y, j)
        in_x = self._inside(near, slack, i, j, self.x_radii[i])
        in_y = self._inside(near, slack, i, j, self.y_radii[j])
        self.y_in_x_balls += torch.bincount(j[in_x], minlength=len(self.y))
        self.x_balls_hit[i[in_x]] = True
        self.x_in_y_ball[i[in_y]] = True

    def _inside(self, near: Tensor, slack: Tensor, i: Tensor, j: Tensor, radii: Tensor) -> Tensor:
        """Whether each pair i, j [p] is within its squared radius: by the tile where that is sure, else in float64."""
        margin = near - radii / self.x.scale**2
        inside = margin < -slack
        open_ = (margin.abs() <= slack).nonzero().flatten()
        exact = exact_squared_distances(self.x.features, i[open_], self.y.features, j[open_])
        inside[open_] = exact < radii[open_] if self.strict else exact <= radii[open_]
        return inside

    def scores(self, k: int) -> ManifoldScores:
        return ManifoldScores(
            precision=(self.y_in_x_balls > 0).double().mean().item(),
            recall=self.x_in_y_ball.double().mean().item(),
            density=self.y_in_x_balls.sum().item() / (k * len(self.y)),
            coverage=self.x_balls_hit.double().mean().item(),
        )


@dataclass(frozen=True)
class ManifoldScores:
    """Shares in [0,1], but density, which may exceed 1."""

    precision: float
    """Share of generated points inside some reference ball."""
    recall: float
    """Share of reference points inside some generated ball."""
    density: float
    """Reference balls around a generated point, over k."""
    coverage: float
    """Share of reference balls that hold a generated point."""


def manifold_scores(x: Tensor, y: Tensor, k: int = 3, strict: bool = False, fast: bool = False) -> ManifoldScores:
    """Precision, recall, density and coverage of generated y [m,d] against reference x [n,d].

    ADM and torch-fidelity (precision and recall): k = 3, not strict. prdc, dgm-eval, StudioGAN: k = 5, strict.
    `fast` changes the time, not the scores.

    Raises:
        DataError: fewer than k + 2 rows, other widths, NaN or Inf.
    """
    check_neighbourhood(x, y, k)
    x_cloud, y_cloud = clouds(x, y, fast)
    x_radii, y_radii = (squared_radii(cloud, k, fast) for cloud in (x_cloud, y_cloud))
    balls = Balls(x_cloud, y_cloud, x_radii, y_radii, strict)
    visit_pairs(x_cloud, y_cloud, [balls.visit], fast)
    return balls.scores(k)


def squared_radii(cloud: Cloud, k: int, fast: bool = False) -> Tensor:
    """Squared distance [n] float64 of each row to its k-th neighbour in its own set."""
    neighbours = NearestNeighbours(cloud, k)
    visit_upper(cloud, [neighbours.visit], fast)
    return neighbours.squared_radii()


def _nearest(x: Cloud, y: Cloud, weight: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of y the row i of x of least |x_i - y|^2 / weight_i: (index [m], exact squared distance [m])."""
    best = torch.full((len(y),), torch.inf, device=y.rows.device)
    index = torch.zeros(len(y), dtype=torch.int64, device=y.rows.device)
    scale = weight.float()[:, None]
    for columns in blocks(len(y)):
        for rows in blocks(len(x)):
            distance = (
                squared_distances(x, y, rows, columns, products(x.rows[rows], y.rows[columns], False)) / scale[rows]
            )
            value, place = distance.min(0)
            closer = value < best[columns]
            best[columns] = torch.where(closer, value, best[columns])
            index[columns] = torch.where(closer, place + rows.start, index[columns])
    return index, exact_squared_distances(x.features, index, y.features, torch.arange(len(y), device=index.device))


def realism(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """Realism of each generated image [m], float64: max_i r_i / |x_i - y| over the balls smaller than the median one.

    Kynkaanniemi et al. 2019, eq. 3, with the rule of dgm-eval (radii strictly below the median).

    Raises:
        DataError: all radii are equal, or a y equals a kept x whose ratio is unbounded; see also `manifold_scores`.
    """
    check_neighbourhood(x, y, k)
    x_cloud, y_cloud = clouds(x, y)
    radii = squared_radii(x_cloud, k).sqrt()
    kept = radii < radii.quantile(0.5)
    kept &= radii > 0  # a ball of radius 0 never gives the maximum
    if not kept.any():
        raise DataError("realism: no radius lies between 0 and the median; remove duplicates from the reference")
    x_cloud, y_cloud = clouds(x[kept], y)
    index, squared = _nearest(x_cloud, y_cloud, radii[kept].square() / x_cloud.scale**2)
    if (squared == 0).any():
        row = int((squared == 0).nonzero()[0])
        raise DataError(f"realism: generated row {row} equals a reference row, so realism is unbounded; remove copies")
    return radii[kept][index] / squared.sqrt()


def authenticity(x: Tensor, y: Tensor) -> float:
    """AuthPct (dgm-eval, after Alaa et al. 2022): percentage of generated images that are no copies of training images.

    An image is authentic if the training image nearest to it has another training image closer to it than that.
    """
    check_pair(x, y, least=2, reason="AuthPct")
    x_cloud, y_cloud = clouds(x, y)
    index, squared = _nearest(x_cloud, y_cloud, torch.ones(len(x), device=x.device))
    return 100 * (squared_radii(x_cloud, 1)[index] < squared).double().mean().item()
