"""Images by label and seed: one place where batches are cut, for the sampler, the evaluation and the studio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.core.contracts import OnStep, SamplingSettings, to_uint8
from genlab.core.errors import GenlabError, NonFinite
from genlab.core.generator import Generator
from genlab.nn.packed import packed
from samplers.noise import spawn


class Sampled(NamedTuple):
    """One finished batch."""

    indices: list[int]
    """Which images of the plan."""
    images: Tensor
    """uint8 [n,3,R,R], on the CPU."""


def sample_images(
    generator: Generator,
    labels: Sequence[int],
    seed: int,
    index: Sequence[int],
    batch: int,
    settings: SamplingSettings | None = None,
    on_step: OnStep | None = None,
    quantise: Callable[[Tensor], Tensor] = to_uint8,
    on_smaller: Callable[[int], None] | None = None,
) -> Iterator[Sampled]:
    """Image i of seed `seed` for each i of `index`, with label `labels[i]`, in batches of at most `batch`.

    An image depends on (seed, i, label, settings) alone, not on the batch it is made in. Running out of memory
    halves the batch, tells `on_smaller` the new one and goes on. `quantise` makes 8 bits of images in [-1,1].

    Raises:
        GenlabError: one image alone does not fit on the device.
        NonFinite: samples are NaN or infinite; those finished before have been yielded.
    """
    todo = list(index)
    with packed(generator.network):
        while todo:
            part = todo[:batch]
            try:
                images = _one_batch(generator, [labels[i] for i in part], seed, part, settings, on_step, quantise)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise GenlabError("one image does not fit in the device's memory; use a smaller model") from error
                batch = len(part) // 2
                torch.cuda.empty_cache()
                if on_smaller is not None:
                    on_smaller(batch)
                continue
            yield Sampled(part, images)
            todo = todo[len(part) :]


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Of the processor and of Apple's accelerators torch says so in words alone."""
    said = ("DefaultCPUAllocator: ", "backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def _one_batch(
    generator: Generator,
    labels: list[int],
    seed: int,
    index: list[int],
    settings: SamplingSettings | None,
    on_step: OnStep | None,
    quantise: Callable[[Tensor], Tensor],
) -> Tensor:
    label = torch.tensor(labels, device=generator.device)
    images = generator.sample(label, spawn(seed, index, generator.device), settings, on_step)
    broken = ~images.flatten(1).isfinite().all(dim=1)
    if broken.any():
        rows = [index[row] for row in broken.nonzero().flatten().tolist()]
        raise NonFinite(f"samples {rows[:8]} of seed {seed} are not finite; try fewer guidance, more steps or fp32")
    return quantise(images).cpu()


def label_plan(num_classes: int, classes: Sequence[int] | None, per_class: int | None, count: int) -> list[int]:
    """The label of every image: `per_class` of each of `classes`, or `count` images over them in turn.

    Without `classes` all 0..K-1 are meant; label K, which stands for no class, can be asked for.

    Raises:
        GenlabError: a class that does not exist, or numbers below one.
    """
    if (per_class if per_class is not None else count) < 1:
        raise GenlabError("ask for at least one image")
    for label in classes or ():
        if not 0 <= label <= num_classes:
            has = f"classes 0..{num_classes - 1} and none" if num_classes else "no classes"
            raise GenlabError(f"class {label}: this generator has {has}")
    chosen = list(classes) if classes else list(range(num_classes or 1))
    if per_class is not None:
        return [label for label in chosen for _ in range(per_class)]
    return [chosen[i % len(chosen)] for i in range(count)]
