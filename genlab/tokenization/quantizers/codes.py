"""Codes as numbers: compact storage, range checks, and how evenly they are used."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genlab.core.errors import DataError

_UINT16 = 1 << 16


def check(codes: Tensor, vocab: int) -> Tensor:
    """The codes themselves.

    Raises:
        DataError: one is outside 0..vocab-1.
    """
    if codes.numel():
        low, high = (int(end) for end in torch.aminmax(codes))
        if low < 0 or high >= vocab:
            raise DataError(f"codes {low}..{high}, but the codebook has 0..{vocab - 1}: made by another tokenizer?")
    return codes


def narrow(codes: Tensor, vocab: int) -> Tensor:
    """Codes as they are stored: uint16 if `vocab` <= 65536, otherwise int32. Raises DataError if out of range."""
    return check(codes, vocab).to(torch.uint16 if vocab <= _UINT16 else torch.int32)


def widen(codes: Tensor, vocab: int) -> Tensor:
    """Stored codes -> int64. Raises DataError if out of range."""
    return check(codes.long(), vocab)


class UsageReport(NamedTuple):
    """How evenly the codes of one depth or scale were used."""

    share: float
    """Codes that were used, of all; 0..1."""
    perplexity: float
    """exp of the entropy: as many evenly used codes would have it; 1..V (0 if nothing was counted)."""
    bits: float
    """Entropy in bits a code; 0..log2 V."""
    dead: int
    """Codes that were not used."""
    total: int
    """Codes that were counted."""


class Usage(nn.Module):
    """Counts of the codes since the last reading, for each of D depths (or scales)."""

    histogram: Tensor
    """int64 [D,V], of this process."""

    def __init__(self, vocab: int, depth: int = 1):
        super().__init__()
        self.register_buffer("histogram", torch.zeros(depth, vocab, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        """Codes [...,D]; of any shape if D = 1."""
        depth, vocab = self.histogram.shape
        flat = codes.reshape(-1, depth) + torch.arange(depth, device=codes.device) * vocab
        self.histogram += torch.bincount(flat.flatten(), minlength=depth * vocab).view(depth, vocab)

    def read(self) -> list[UsageReport]:
        """One report a depth, of all processes together; counting starts again. All processes must call it."""
        total = self.histogram.clone()
        self.histogram.zero_()
        if dist.is_initialized():
            dist.all_reduce(total)
        return [_report(row) for row in total.cpu()]


def _report(histogram: Tensor) -> UsageReport:
    count, used = int(histogram.sum()), int((histogram > 0).sum())
    shares = histogram.double() / max(count, 1)
    bits = float(torch.special.entr(shares).sum()) / math.log(2.0)
    return UsageReport(used / len(histogram), 2.0**bits if count else 0.0, bits, len(histogram) - used, count)
