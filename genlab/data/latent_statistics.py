"""Statistics of raw latents in parts that can be added up: each shard's, then all in the order of the shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import LatentSpec

_AT_ONCE = 512
"""Latents brought to float64 at once."""


def measure(stored: Tensor, spec: LatentSpec) -> dict[str, Any]:
    """Of one shard's tensor [n,V,...]: counts of codes, or count, sums and sums of squares of the means' channels."""
    values = stored.flatten(0, 1)
    if spec.kind != "continuous":
        return {"usage": torch.bincount(values.flatten().long(), minlength=spec.vocab or 0).tolist()}
    total = square = torch.zeros(spec.channels, dtype=torch.float64)
    for part in values.split(_AT_ONCE):
        means = part[:, : spec.channels].double().flatten(2)  # of moments, the means come first
        total = total + means.sum(dim=(0, 2))
        square = square + means.square().sum(dim=(0, 2))
    return {"count": len(values) * math.prod(values.shape[2:]), "sum": total.tolist(), "square": square.tolist()}


def merge(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all shards: usage (counts of codes), used and perplexity; or mean and std, scalar and per
    channel."""
    added = reduce(_add, parts)
    if "usage" in added:
        usage = torch.tensor(added["usage"], dtype=torch.float64)
        shares = usage[usage > 0] / usage.sum()
        perplexity = math.exp(-(shares * shares.log()).sum().item())
        return {"usage": added["usage"], "used": int((usage > 0).sum()), "perplexity": perplexity}
    mean = torch.tensor(added["sum"], dtype=torch.float64) / added["count"]
    square = torch.tensor(added["square"], dtype=torch.float64) / added["count"]
    return {
        "mean": mean.mean().item(),
        "std": (square.mean() - mean.mean().square()).clamp_min(0).sqrt().item(),
        "channel_mean": mean.tolist(),
        "channel_std": (square - mean.square()).clamp_min(0).sqrt().tolist(),
    }


def _add(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    added: dict[str, Any] = {}
    for key, value in one.items():
        if isinstance(value, list):
            added[key] = [a + b for a, b in zip(value, other[key], strict=True)]
        else:
            added[key] = value + other[key]
    return added
