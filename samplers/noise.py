"""Random numbers in which every sample of a batch has a stream of its own.

A draw is a pure function of (seed, sample index, number of earlier draws, position), computed with a counter-based
generator: the SplitMix64 finaliser (Steele, Lea & Flood 2014) applied to keyed counters. So sample i of seed s gets the
same numbers for any batch size, any number of processes, any device, and after a restart; and there is no generator
state to save. All operations are vectorised over the batch and run on the device of `index`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit pattern as the Python int that an int64 tensor holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 in which every input bit flips half of the output bits."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MULTIPLY_1  # the masks make >> a logical shift
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MULTIPLY_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class SampleRng:
    """Per-sample random streams.

    Args:
        seed: any Python int (the low 64 bits count).
        index: int64 [B], the identity of each sample; on the device on which numbers are wanted.

    Every method returns [B, *shape] and advances all streams by one draw. Results are float32 or int64.
    """

    def __init__(self, seed: int, index: Tensor):
        base = torch.full((), _signed(seed), dtype=torch.int64, device=index.device)
        self._key = _mix(_mix(base + _GOLDEN) + index.long() * _GOLDEN)  # [B]
        self._draws = 0

    def __len__(self) -> int:
        return self._key.shape[0]

    @property
    def device(self) -> torch.device:
        return self._key.device

    def fork(self, stream: int) -> SampleRng:
        """Independent streams of the same samples, numbered `stream`; draws here do not shift draws there."""
        return self._with_key(_mix(self._key ^ _signed((stream + 1) * 0xD1342543DE82EF95)), draws=0)

    def rows(self, rows: slice | Tensor) -> SampleRng:
        """The streams of some samples of the batch, continuing from here."""
        return self._with_key(self._key[rows], self._draws)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32, uniform on [0, 1), multiples of 2^-24."""
        return (self._bits(math.prod(shape)) >> 40 & 0xFFFFFF).float().mul_(2.0**-24).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] float32, standard normal (Box & Muller 1958; two values from each 64-bit draw)."""
        count = math.prod(shape)
        bits = self._bits((count + 1) // 2)
        radius = (((bits >> 32) & 0xFFFFFFFF).float() + 0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (bits & 0xFFFFFFFF).float().mul_(2.0 * math.pi * 2.0**-32)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)  # [B, 2 ceil(count/2)]
        return pairs[:, :count].reshape(-1, *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64, uniform on 0..high-1 (bias below high/2^53)."""
        if high < 1:
            raise ValueError(f"integers(high={high}): high must be at least 1")
        fraction = (self._bits(math.prod(shape)) >> 11 & ((1 << 53) - 1)).double() * 2.0**-53
        return (fraction * high).long().clamp_(max=high - 1).view(-1, *shape)

    def _bits(self, count: int) -> Tensor:
        """[B, count] int64 of 64 random bits."""
        stream = _mix(self._key + _signed((self._draws + 1) * 0xA0761D6478BD642F))  # [B]
        self._draws += 1
        counter = torch.arange(1, count + 1, device=self._key.device) * _GOLDEN  # [count]
        return _mix(stream[:, None] + counter)

    def _with_key(self, key: Tensor, draws: int) -> SampleRng:
        other = object.__new__(SampleRng)
        other._key, other._draws = key, draws
        return other


def spawn(seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> SampleRng:
    """The streams of samples `indices` of `seed`, on `device`."""
    return SampleRng(seed, torch.tensor(list(indices), dtype=torch.int64, device=device))
