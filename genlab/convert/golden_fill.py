"""Weights that golden files describe by a formula instead of storing them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def hashed(names: Sequence[str], shapes: Sequence[Sequence[int]], codebook_scale: float = 1.0) -> dict[str, Tensor]:
    """The recipe "fill" of the analytic VQ files: tensors are numbered in the given order."""
    state = {}
    for number, (name, shape) in enumerate(zip(names, shapes)):
        x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
        x += np.uint32((number * 2654435769 + 374761393) % 2**32)
        x ^= x >> np.uint32(15)
        x *= np.uint32(2246822519)
        x ^= x >> np.uint32(13)
        x *= np.uint32(3266489917)
        x ^= x >> np.uint32(16)
        signed = 2.0 * (x / 2.0**32) - 1.0
        if name == "quantize.embedding.weight":
            values = codebook_scale * signed
        elif len(shape) >= 2:
            values = math.sqrt(3.0) * math.sqrt(1.0 / math.prod(shape[1:])) * signed
        elif name.endswith(".weight") and name.split(".")[-2].startswith("norm"):
            values = 1.0 + 0.2 * signed
        else:
            values = 0.05 * signed
        state[name] = torch.from_numpy(values).float().reshape(tuple(shape))
    return state


def by_rule(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The recipe "parameter_rule" of the full-size KL files: tensors are numbered in the order of their names."""
    state = {}
    for number, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        h = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
        h += np.uint32((number + 1) * 2246822519 % 2**32)
        h ^= h >> np.uint32(15)
        h *= np.uint32(2246822519)
        h ^= h >> np.uint32(13)
        signed = h / 2.0**31 - 1.0
        if len(shape) > 1:
            values = signed * math.sqrt(3.0 / math.prod(shape[1:]))
        else:
            values = 1.0 + 0.2 * signed if name.endswith("weight") else 0.1 * signed
        state[name] = torch.from_numpy(values).float().reshape(tuple(shape))
    return state
