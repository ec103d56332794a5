"""Micro-batches for training: endless, in an exact order, from any position, for any number of processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genlab.core.contracts import Batch, Raw
from genlab.core.errors import GenlabError
from genlab.data.latents import LatentSource
from genlab.data.order import Order, micro_batches
from genlab.data.source import ImageSource, ImageStream
from genlab.data.stream_reader import read_stream

_PREFETCH = 4
"""Micro-batches that each worker keeps ready."""
Source: TypeAlias = ImageSource | ImageStream | LatentSource
"""What a run can be trained on."""
Content: TypeAlias = Literal["images", "raw"]
Fetched: TypeAlias = tuple[Sequence[int], Raw, Tensor]
"""Positions [n], images uint8 [n,3,R,R] or raw latents, labels int64 [n]."""
Item = TypeVar("Item")


def batches(
    source: Source,
    *,
    seed: int,
    batch: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches on the CPU, endlessly: images uint8 [b,3,R,R], label and position int64 [b].

    Which images stand at which positions depends on `seed` and the source alone; how they are cut into batches, shared
    out and loaded does not matter. See `genlab.data.order`. A latent cache gives `raw` instead of images.

    Args:
        batch: images per global batch; a multiple of world * micro_batch.
        micro_batch: b.
        rank, world: which process of how many.
        start: images seen so far in all, a multiple of `batch`.
        workers: processes (streams: threads) that decode; 0 is best for data in memory.
        device: where the batches will go; pinned memory is used if that is a CUDA device.

    Raises:
        DataError: at once for sizes that do not fit, later for images that cannot be read.
    """
    shares = micro_batches(batch=batch, micro_batch=micro_batch, rank=rank, world=world, start=start)
    pin = device is not None and device.type == "cuda"
    if isinstance(source, ImageStream):
        return _batches(read_stream(source, shares, seed=seed, start=start, workers=workers), pin, "images")
    content: Content = "raw" if isinstance(source, LatentSource) else "images"
    return _batches(_read_source(source, shares, seed, workers), pin, content)


def _batches(reads: Iterator[Fetched], pin: bool, content: Content) -> Iterator[Batch]:
    for positions, values, label in reads:
        position = torch.tensor(positions, dtype=torch.int64)
        if pin:
            values, label, position = _pinned(values), label.pin_memory(), position.pin_memory()
        yield Batch(label=label, position=position, **{content: values})  # type: ignore[arg-type]


def _pinned(values: Raw) -> Raw:
    if isinstance(values, dict):
        return {name: value.pin_memory() for name, value in values.items()}
    return values.pin_memory()


def _read_source(
    source: ImageSource | LatentSource, shares: Iterator[range], seed: int, workers: int
) -> Iterator[Fetched]:
    loader: DataLoader[Any] = DataLoader(
        _Fetches(source, Order(seed, len(source))),
        batch_sampler=map(list, shares),
        num_workers=workers,
        prefetch_factor=_PREFETCH if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # or the loader would draw from the global one, and shift a run's random numbers
    )
    for read in loader:
        if isinstance(read, GenlabError):
            raise read
        yield read


class _Fetches(Dataset[Any]):
    """A source as torch's DataLoader wants it: addressed by lists of positions."""

    def __init__(self, source: ImageSource | LatentSource, order: Order):
        self._source = source
        self._order = order

    def __getitems__(self, positions: Sequence[int]) -> Fetched | GenlabError:
        try:
            return positions, *self._source.fetch(self._order.indices(positions).tolist(), positions)
        except GenlabError as error:  # handed over: raised in a worker, its message would grow a traceback
            return error


def _as_is(item: Item) -> Item:
    return item


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the parent finishes its step, then stops us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
