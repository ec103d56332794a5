"""Merging similar tokens before an expensive layer, and copying its results back.

"Token Merging for Fast Stable Diffusion", Bolya & Hoffman, CVPR workshops 2023.

Letters: B batch, N tokens of an h x w grid, D width, d destinations, r merged tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Merging(NamedTuple):
    """Which tokens become which; made by `match`."""

    kept: Tensor
    """int64 [B,N-d-r], sources that stay, the most similar to a destination first."""
    merged: Tensor
    """int64 [B,r], sources that go."""
    target: Tensor
    """int64 [B,r], the destination, 0..d-1, of each of them."""
    destinations: Tensor
    """int64 [d]."""

    def merge(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,N-r,D]: sources that stay, then destinations, averaged with what they received."""
        target = self.target[..., None].expand(-1, -1, x.shape[2])
        means = x[:, self.destinations].scatter_reduce(1, target, _take(x, self.merged), "mean")  # [B,d,D]
        return torch.cat([_take(x, self.kept), means], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """[B,N-r,D] -> [B,N,D]: each merged token gets a copy of its destination."""
        kept, means = y.split([self.kept.shape[1], len(self.destinations)], dim=1)
        tokens = self.kept.shape[1] + self.merged.shape[1] + len(self.destinations)
        x = y.new_empty(len(y), tokens, y.shape[2])
        x[:, self.destinations] = means
        for places, values in ((self.kept, kept), (self.merged, _take(means, self.target))):
            x.scatter_(1, places[..., None].expand_as(values), values)
        return x


def match(metric: Tensor, grid: tuple[int, int], region: tuple[int, int], amount: int) -> Merging:
    """The `amount` sources that are most like a destination, by cosine similarity of `metric` [B,N,D].

    The first token of each whole region of the grid is a destination, all others are sources; more than there are
    cannot be merged.
    """
    (rows, columns), (high, wide) = grid, region
    places = torch.arange(rows * columns, device=metric.device).view(rows, columns)
    heads = places[: rows // high * high : high, : columns // wide * wide : wide].flatten()  # [d]
    is_source = torch.ones(rows * columns, dtype=torch.bool, device=metric.device)
    is_source[heads] = False
    sources = places.flatten()[is_source]  # [N-d]
    unit = F.normalize(metric, dim=2)
    best, target = (unit[:, sources] @ unit[:, heads].transpose(1, 2)).max(dim=2)  # 2 x [B,N-d]
    order = best.argsort(dim=1, descending=True)  # [B,N-d]
    going, staying = order[:, :amount], order[:, amount:]
    return Merging(sources[staying], sources[going], target.gather(1, going), heads)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x [B,N,D] at places [B,n] -> [B,n,D]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
