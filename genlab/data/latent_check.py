"""Is a latent cache what its tokenizer makes of its images?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from genlab.data.latent_index import Index
from genlab.data.latent_shards import checksum
from genlab.data.latent_writer import Encoder, to_stored
from genlab.data.latents import LatentSource

_TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest difference as a share of the largest value: other hardware, batch sizes and rounding."""
_CODES = 1e-3
"""Share of codes that may differ: those about halfway between two code vectors."""
_BATCH = 32


class Comparison(NamedTuple):
    """What a verification found."""

    images: int
    difference: float
    """Continuous: the largest difference as a share of the largest value; codes: the share that differs."""
    allowed: float
    damaged: list[str]
    """Shards with another checksum than the index says."""

    @property
    def ok(self) -> bool:
        return self.difference <= self.allowed and not self.damaged


def compare(folder: Path, index: Index, encoder: Encoder, count: int = 256) -> Comparison:
    """Encode `count` images again, evenly over the cache and with all their views, and check all checksums."""
    source = LatentSource(folder, index)
    damaged = [shard.file for shard in index.shards if checksum(folder / shard.file) != shard.crc32]
    chosen = np.unique(np.linspace(0, index.images - 1, min(count, index.images)).astype(np.int64))
    difference, allowed = 0.0, _CODES
    for part in np.array_split(chosen, -(-len(chosen) // _BATCH)):
        images, _ = encoder.fetch(part.tolist(), index)
        for name, value in encoder.encode(images).items():
            kind = index.tensors[name].dtype
            again = to_stored(value, kind, index.spec, "verifying")
            cached = source.stored(name, part.tolist())
            if again.is_floating_point():
                allowed = _TOLERANCE[kind]
                scale = max(again.abs().max().item(), 1e-6)
                difference = max(difference, (again.float() - cached.float()).abs().max().item() / scale)
            else:
                wrong = (again.long() != cached.long()).double().mean().item()
                difference += wrong * len(part) / len(chosen)
    return Comparison(len(chosen), difference, allowed, damaged)
