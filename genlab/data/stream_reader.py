"""Reading micro-batches from an ImageStream ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import TypeVar

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.data.decode import Unreadable
from genlab.data.source import ImageStream, Sample

_MOST_DAMAGED_IN_A_ROW = 1000
_READ_AHEAD = 2
"""Micro-batches per worker."""

Read = tuple[Sequence[int], Tensor, Tensor]
"""Positions [n], images uint8 [n,3,R,R], labels int64 [n]."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_stream(
    stream: ImageStream, micro_batches: Iterator[Sequence[int]], *, seed: int, start: int, workers: int
) -> Iterator[Read]:
    """The micro-batches at the given rising positions, none before `start`.

    Threads, not processes: the sequence is then read once, and Pillow decodes without holding Python's lock.
    """
    window = _Window(stream.samples(seed, start), start)
    if workers == 0:
        yield from (_read(stream, window, positions, map) for positions in micro_batches)
        return
    with ThreadPoolExecutor(workers, "decode") as decoders:
        yield from ahead(
            lambda positions: _read(stream, window, positions, decoders.map), micro_batches, _READ_AHEAD * workers
        )


class _Window:
    """A part of an endless sequence in which one may look back and forth, moving forward."""

    def __init__(self, samples: Iterator[Sample], start: int):
        self._samples = samples
        self._start = start
        self._kept: deque[Sample] = deque()

    def __getitem__(self, position: int) -> Sample:
        missing = position - self._start - len(self._kept) + 1
        self._kept.extend(islice(self._samples, max(missing, 0)))
        return self._kept[position - self._start]

    def forget(self, before: int) -> None:
        """Give up samples at positions below `before`."""
        self[before]
        while self._start < before:
            self._kept.popleft()
            self._start += 1


def _read(
    stream: ImageStream,
    window: _Window,
    positions: Sequence[int],
    parallel_map: Callable[..., Iterator[Tensor | None]],
) -> Read:
    window.forget(positions[0])
    samples = [window[position] for position in positions]
    decoded = parallel_map(lambda sample, position: _decode(stream, sample, position), samples, positions)
    images, labels = [], []
    for image, sample, position in zip(decoded, samples, positions):
        if image is None:
            image, sample = _next_readable(stream, window, position)
        images.append(image)
        labels.append(sample.label)
    return positions, torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _decode(stream: ImageStream, sample: Sample, position: int) -> Tensor | None:
    try:
        return stream.decode(sample, position)
    except Unreadable:
        return None


def _next_readable(stream: ImageStream, window: _Window, position: int) -> tuple[Tensor, Sample]:
    """What takes the place of a damaged sample: the next readable one, whichever process it belongs to."""
    for candidate in islice(count(position + 1), _MOST_DAMAGED_IN_A_ROW):
        image = _decode(stream, window[candidate], position)
        if image is not None:
            return image, window[candidate]
    raise DataError(f"{window[position].name}: more than {_MOST_DAMAGED_IN_A_ROW} damaged images in a row")


def ahead(function: Callable[[Item], Result], items: Iterator[Item], depth: int, threads: int = 1) -> Iterator[Result]:
    """`map(function, items)` in threads that work up to `depth` items ahead."""
    with ThreadPoolExecutor(threads, "read") as reader:
        pending = deque(reader.submit(function, item) for item in islice(items, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(reader.submit(function, item) for item in islice(items, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
