"""How much a student's samples of a class differ from each other, against the data's: what shows a collapse early."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_SIDE = 8  # maps are averaged down to this before they are compared: less to keep, and fine grain tells no collapse


class Spread:
    """Variances within classes since the last reading, of samples and of data, each averaged down to 8 x 8."""

    def __init__(self, classes: int):
        self.classes = max(classes, 1)
        self.sums: Tensor | None = None  # [2,K,n+2]: values, their squares' sum, count; of samples, then of data

    @torch.no_grad()
    def count(self, samples: Tensor, label: Tensor, data: Tensor, data_label: Tensor) -> None:
        """Take in samples and data [B,C,H,W] with their labels [B] of 0..K-1."""
        for row, (values, classes) in enumerate(((samples, label), (data, data_label))):
            sides = (min(values.shape[2], _SIDE), min(values.shape[3], _SIDE))
            flat = F.adaptive_avg_pool2d(values.float(), sides).flatten(1)  # [B,n]
            columns = torch.cat([flat, flat.square().sum(1, keepdim=True), torch.ones_like(flat[:, :1])], dim=1)
            if self.sums is None:
                self.sums = columns.new_zeros(2, self.classes, columns.shape[1], dtype=torch.float64)
            self.sums[row].index_add_(0, classes, columns.double())

    def read(self) -> dict[str, float]:
        """The samples' variance as a share of the data's: "spread" over classes, "spread_lowest", and each of up to 20.

        Of classes seen at least 8 times, over all processes together. Counting starts again.
        """
        if self.sums is None:
            return {}
        sums, self.sums = self.sums, None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count = sums[..., -1]  # [2,K]
        mean = sums[..., :-2] / count.clamp_min(1)[..., None]
        variance = sums[..., -2] / count.clamp_min(1) - mean.square().sum(-1)  # [2,K]
        known = (count >= 8).all(0)
        if not known.any():
            return {}
        share = (variance[0] / variance[1].clamp_min(1e-12))[known]
        figures = {"spread": float(share.mean()), "spread_lowest": float(share.min())}
        if self.classes <= 20:
            names = known.nonzero().flatten().tolist()
            figures |= {f"spread {name}": value for name, value in zip(names, share.tolist())}
        return figures
