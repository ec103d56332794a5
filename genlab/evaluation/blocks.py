"""The blocks that images are extracted in: of fixed size and content.

float32 arithmetic depends on what shares a batch. With blocks that depend on nothing but an image's index, every image
has the same features to the last bit, whatever the sampling batch, the number of processes and the run's history.

Letters: N images, n images of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from genlab.evaluation.extractors import Extractor
from genlab.evaluation.extractors.base import arithmetic
from genlab.evaluation.sources import Part

BLOCK = 64
CPU_BATCH = 16
"""Images that a network makes at once on the CPU, whatever the batch asked for."""
_CPU_PIECE = 4  # larger pieces only make larger activations, which leave the cache and cost page faults


def made_at_once(batch: int, device: torch.device) -> int:
    """Images of one network call: on the CPU always as many, so that they are the same to the last bit for any batch.

    Elsewhere a fixed number would waste the device, or not fit: `batch` decides, and images of two batches may differ
    by a level of 255 now and then.
    """
    return CPU_BATCH if device.type == "cpu" else batch


def block_count(images: int) -> int:
    """Blocks of a set of `images`; the last may be short."""
    return -(-images // BLOCK)


def indices_of(blocks: Iterable[int], images: int) -> list[int]:
    """The indices of all images of `blocks`, in order."""
    return [i for block in blocks for i in range(block * BLOCK, min((block + 1) * BLOCK, images))]


def in_blocks(index: Tensor, blocks: Tensor) -> Tensor:
    """Which of the images `index` lie in one of `blocks`, bool of the same shape."""
    return torch.isin(index // BLOCK, blocks)


def whole_blocks(parts: Iterable[Part], images: int) -> Iterator[Part]:
    """Parts that hold whole blocks in any cut -> one part per block."""
    waiting: list[Part] = []
    for part in parts:
        for piece in _cut(part):
            waiting.append(piece)
            last = piece.index[-1]
            if (last + 1) % BLOCK == 0 or last + 1 == images:
                yield _join(waiting)
                waiting = []


class Extraction:
    """Extracts blocks. On the CPU, threads take pieces side by side, each computing on its own.

    This scales better than threads inside every small operation, which wait for each other hundreds of times an image
    and, where other programs share the machine, wait tenfold. And features no longer depend on the number of threads.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        """Layers of a block [n,3,R,R]."""
        device = next(extractor.parameters(), images).device
        if device.type != "cpu":
            return extractor(images)
        with arithmetic(extractor.precision, device.type):  # process-wide: set here, the threads' own changes are none
            pieces = list(self._pool.map(extractor, images.split(_CPU_PIECE)))
        return {layer: torch.cat([piece[layer] for piece in pieces]) for layer in pieces[0]}


def _cut(part: Part) -> Iterator[Part]:
    """A part, cut where one block ends and the next begins."""
    start = 0
    for end in range(1, len(part.index) + 1):
        if end == len(part.index) or part.index[end] // BLOCK != part.index[start] // BLOCK:
            labels = part.labels[start:end] if part.labels is not None else None
            yield Part(part.index[start:end], part.images[start:end], labels)
            start = end


def _join(pieces: list[Part]) -> Part:
    if len(pieces) == 1:
        return pieces[0]
    labels = torch.cat([piece.labels for piece in pieces if piece.labels is not None])
    index = [i for piece in pieces for i in piece.index]
    return Part(index, torch.cat([piece.images for piece in pieces]), labels if len(labels) else None)
