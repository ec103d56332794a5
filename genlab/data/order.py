"""The order in which images are seen: a pure function of (seed, position), shared out among processes.

Position p counts images since training began. Epoch e = p // N walks through permutation e of the N images, so a run
can be resumed anywhere by its position alone, and any number of processes sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from genlab.core.errors import DataError


class Order:
    """Which of `length` images stands at each position of the endless sequence of `seed` (any int)."""

    def __init__(self, seed: int, length: int):
        self._seed = seed % 2**64
        self._length = length
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def indices(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Indices int64 [n] in 0..N-1 for positions [n]."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self._length)
        result = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            result[chosen] = self._permutation(epoch)[places[chosen]]
        return result

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:  # a batch spans few epochs: keep memory at two permutations
                del self._permutations[min(self._permutations)]
            philox = np.random.Philox(np.random.SeedSequence([self._seed, epoch]))
            self._permutations[epoch] = np.random.Generator(philox).permutation(self._length)
        return self._permutations[epoch]


def micro_batches(*, batch: int, micro_batch: int, rank: int, world: int, start: int) -> Iterator[range]:
    """The positions of this rank's micro-batches, endlessly, from global position `start` on.

    Global batch k covers positions [kB, (k+1)B); rank r of W takes its contiguous share [kB + rB/W, kB + (r+1)B/W).

    Raises:
        DataError: at once, when the sizes do not divide each other or `start` is inside a batch.
    """
    if not 0 <= rank < world:
        raise DataError(f"rank {rank} is not one of {world} processes")
    if batch < 1 or micro_batch < 1 or batch % (world * micro_batch):
        raise DataError(
            f"a batch of {batch} images cannot be cut into micro-batches of {micro_batch} on {world} processes;"
            f" choose a multiple of {world * max(micro_batch, 1)}"
        )
    if start < 0 or start % batch:
        raise DataError(f"position {start} is inside a batch of {batch}; resume with the run's batch size")
    share = batch // world
    return (
        range(first, first + micro_batch)
        for first_of_batch in count(start, batch)
        for first in range(first_of_batch + rank * share, first_of_batch + (rank + 1) * share, micro_batch)
    )
