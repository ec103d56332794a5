"""Mean and covariance of a stream of features, exact in float64 and mergeable.

Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979): the state is
(n, mean, M2) with M2 = sum of outer products of centred rows, so nothing cancels, however large the mean is.

Letters: N rows, d features.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_features

_ROWS = 8192  # rows handled at once, so that a large batch needs little more memory than a small one


class Moments:
    """Count, mean [d] and centred second moment M2 [d,d] of all rows seen, float64 on one device."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(width, width, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of features [N,d], on their device."""
        moments = cls(features.shape[1], features.device)
        moments.update(features)
        return moments

    @classmethod
    def from_statistics(cls, mean: Tensor, covariance: Tensor, count: int) -> Moments:
        """The state that has mean [d] and covariance [d,d] (ddof 1) over `count` >= 2 rows."""
        if count < 2:
            raise DataError(f"a covariance needs at least 2 rows, the statistics claim {count}")
        moments = cls(len(mean), mean.device)
        moments.count = count
        moments.mean = mean.double()
        moments.m2 = covariance.double() * (count - 1)
        return moments

    def update(self, batch: Tensor) -> None:
        """Take in batch [B,d] of any floating dtype; B = 0 and B = 1 are fine.

        Raises:
            DataError: another width, or rows with NaN or Inf.
        """
        check_features(batch, "features", least=0)
        if batch.shape[1] != len(self.mean):
            raise DataError(f"features have {batch.shape[1]} columns, these statistics have {len(self.mean)}")
        for rows in batch.split(_ROWS):
            rows = rows.to(self.mean.device, torch.float64)
            mean = rows.mean(0)
            self._merge(len(rows), mean, rows - mean)

    def merge(self, other: Moments) -> None:
        """Take in all that `other` has seen."""
        self.m2 += other.m2.to(self.m2.device)
        self._merge(other.count, other.mean.to(self.mean.device), other.m2.new_zeros(0, len(self.mean)))

    def _merge(self, count: int, mean: Tensor, centred: Tensor) -> None:
        """Chan's update. The rank-one term is one more row of the product that adds the centred rows."""
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        shift = delta * (self.count * count / total) ** 0.5
        rows = torch.cat([centred.to(shift.device), shift[None]])
        self.m2.addmm_(rows.mT, rows)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def all_reduce(self) -> None:
        """Make every process hold the moments of all processes' rows; without a process group, nothing happens.

        Each process re-centres its M2 on the global mean before the sum, so the result does not depend on how rows
        were dealt out. Processes without rows take part.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        mine = torch.cat([self.mean.new_tensor([self.count]), self.mean])  # [1+d]
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        counts, means = torch.stack(gathered)[:, 0], torch.stack(gathered)[:, 1:]
        total = counts.sum()
        mean = (counts @ means) / total.clamp(min=1)
        delta = self.mean - mean
        self.m2 += self.count * torch.outer(delta, delta)
        dist.all_reduce(self.m2)
        self.count, self.mean = int(total), mean

    def covariance(self) -> Tensor:
        """Covariance [d,d] with ddof 1.

        Raises:
            DataError: fewer than two rows were seen.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.count}; score more images")
        return (self.m2 + self.m2.mT) / (2 * (self.count - 1))

    def state_dict(self) -> dict[str, Tensor]:
        """All of the state as tensors: what a resumed evaluation needs."""
        return {"count": torch.tensor(self.count), "mean": self.mean.clone(), "m2": self.m2.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], device: torch.device | str = "cpu") -> Moments:
        """The inverse of `state_dict`."""
        moments = cls(len(state["mean"]), device)
        moments.count = int(state["count"])
        moments.mean = state["mean"].to(device, torch.float64)
        moments.m2 = state["m2"].to(device, torch.float64)
        return moments
