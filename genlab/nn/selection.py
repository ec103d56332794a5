"""Some positions of each row of a batch, taken out to be worked on, and put back.

Rows with equally many chosen positions give [B,n,D]. Others are packed one after another, [1,N,D], so that no work goes
into padding but that of attention.

Letters: B rows, L positions, n chosen ones of the row that has most, N chosen ones in all, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where packed values belong."""

    row: Tensor
    """int64 [N], the row of each."""
    slot: Tensor
    """int64 [N], its place among B n, with those of a row together."""
    valid: Tensor
    """bool [B,n], False where a row has fewer than n."""


@dataclass(frozen=True)
class Selection:
    """Chosen positions, row by row and in rising order."""

    shape: tuple[int, int]
    """(B, L)."""
    index: Tensor
    """int64 [N], among the B L positions of the batch."""
    packing: Packing | None
    """None where rows have equal numbers."""

    @classmethod
    def of(cls, chosen: Tensor) -> Self:
        """The selection of `chosen`, bool [B,L]. Waits for the device, to learn how many there are."""
        rows, length = chosen.shape
        index, counts = chosen.flatten().nonzero().flatten(), chosen.sum(1)
        fewest, most = torch.stack(counts.aminmax()).tolist()
        if fewest == most:
            return cls((rows, length), index, None)
        row = index // length
        rank = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[row]
        valid = torch.arange(most, device=index.device) < counts.unsqueeze(1)
        return cls((rows, length), index, Packing(row, row * most + rank, valid))

    def take(self, x: Tensor) -> Tensor:
        """Values at the chosen positions: x [B,L,D] -> [B,n,D] or [1,N,D]."""
        values = x.flatten(0, 1)[self.index]
        return values.unflatten(0, (self.shape[0], -1)) if self.packing is None else values.unsqueeze(0)

    def spread(self, m: Tensor) -> Tensor:
        """What holds for whole rows, m [B,P,1,D], for the chosen positions: [B,P,1,D] or [1,P,N,D]."""
        return m if self.packing is None else m.squeeze(2)[self.packing.row].transpose(0, 1).unsqueeze(0)

    def pad(self, x: Tensor) -> Tensor:
        """[B,n,D] or [1,N,D] -> [B,n,D], zeros where a row has fewer than n."""
        if self.packing is None:
            return x
        valid = self.packing.valid
        return x.new_zeros(valid.numel(), x.shape[2]).index_copy(0, self.packing.slot, x[0]).unflatten(0, valid.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """[B,n,D] -> [B,n,D] or [1,N,D]."""
        return x if self.packing is None else x.flatten(0, 1)[self.packing.slot].unsqueeze(0)


def put(parts: Iterable[tuple[Selection, Tensor]]) -> Tensor:
    """Values [B,L,D] of several selections, zero at all other positions."""
    selections, values = zip(*parts)
    flat, shape = torch.cat([part.flatten(0, 1) for part in values]), selections[0].shape
    index = torch.cat([selection.index for selection in selections])
    return flat.new_zeros(shape[0] * shape[1], flat.shape[1]).index_copy(0, index, flat).unflatten(0, shape)


@dataclass(frozen=True)
class Uneven:
    """Positions that attend to themselves and to a context, when there are not equally many in all rows."""

    tokens: Selection
    context: Selection
    mask: Tensor
    """bool [B,1,1,p+n]: which keys there are, those of the context first."""

    @classmethod
    def of(cls, tokens: Selection, context: Selection) -> Self | None:
        """None for even rows. A row without any key sees padding: a softmax over nothing is NaN, which would spread."""
        if tokens.packing is None and context.packing is None:
            return None
        seen = torch.cat([_valid(context), _valid(tokens)], dim=1)
        return cls(tokens, context, (seen | ~seen.any(1, keepdim=True))[:, None, None])


def _valid(selection: Selection) -> Tensor:
    if selection.packing is not None:
        return selection.packing.valid
    rows, chosen = selection.shape[0], len(selection.index)
    return torch.ones(rows, chosen // rows, dtype=torch.bool, device=selection.index.device)
