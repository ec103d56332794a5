"""One pass over a set of images: read or sample, extract, keep statistics; on all processes, and from where it stopped.

Letters: N images, n images of a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.asks import Ask, choose_layers
from genlab.evaluation.blocks import BLOCK, Extraction, block_count, in_blocks, indices_of, whole_blocks
from genlab.evaluation.collected import Collected, Collector
from genlab.evaluation.processes import add_up, gather_rows
from genlab.evaluation.progress import BLOCKS, TIMES, Progress
from genlab.evaluation.sources import Part, ScoredImages

PICTURES = 64
SAVE_EVERY = 2048


@dataclass
class Times:
    """Seconds spent, by what; of all processes together."""

    sampling: float = 0.0
    """Making or reading the images."""
    extraction: float = 0.0
    statistics: float = 0.0

    def tensor(self) -> Tensor:
        return torch.tensor([self.sampling, self.extraction, self.statistics], dtype=torch.float64)


class Processes(Protocol):
    """What a pass needs to know of its processes; Accelerate's `PartialState` and `Accelerator` are such."""

    process_index: int
    num_processes: int

    def wait_for_everyone(self) -> None: ...


class Writer(Protocol):
    """Takes the images as they come."""

    def write(self, part: Part) -> None: ...


class Tally(Protocol):
    """What a source counts beside the images it hands out: sums, saved and merged with the statistics."""

    sums: dict[str, Tensor]
    """Of the images handed out so far, all zero at first; on the CPU."""


@dataclass(frozen=True)
class Pass:
    """A finished pass: one result per extractor's name; complete on the main process."""

    collected: dict[str, Collected]
    times: Times
    resumed: int = 0
    """Images that an earlier, interrupted run had done."""


@dataclass
class _Pictures:
    """An evenly spaced few of the images, for the report."""

    chosen: Tensor
    index: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def update(self, index: Tensor, images: Tensor) -> None:
        use = torch.isin(index, self.chosen)
        if use.any():
            self.index.append(index[use])
            self.images.append(images[use].cpu())


def shown(count: int) -> list[int]:
    """Which of `count` images a report shows: a few, evenly spaced."""
    return torch.linspace(0, count - 1, min(PICTURES, count), dtype=torch.float64).long().tolist()


class Session:
    """One pass.

    Args:
        asks: what to keep, per extractor; extractors are on their devices.
        processes: None: this one alone.
        progress: where to save and resume; None: nowhere.
        writer: sees every image, such as to write it to disk.
        tick: called with the number of images done since the last call.
        save_every: images of this process between saves.
        tally: of a source that counts; holds the sums over all processes and runs at the end.
    """

    def __init__(
        self,
        source: ScoredImages,
        asks: Sequence[Ask],
        processes: Processes | None = None,
        progress: Progress | None = None,
        writer: Writer | None = None,
        tick: Callable[[int], None] = lambda images: None,
        save_every: int = SAVE_EVERY,
        tally: Tally | None = None,
    ):
        self.source, self.asks, self.progress, self.writer, self.tick = source, asks, progress, writer, tick
        self.sums = tally.sums if tally else {}
        self.processes, self.save_every, self.times = processes, save_every, Times()
        self.rank = processes.process_index if processes else 0
        self.world = processes.num_processes if processes else 1
        for ask in asks:
            choose_layers(ask.extractor, ask.needs)
        size = source.image_size
        probe = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        self.collectors = [
            Collector(
                ask.extractor,
                ask.needs,
                len(source),
                {layer: value.shape[1] for layer, value in ask.extractor(probe).items()},
                ask.rule,
                ask.most,
            )
            for ask in asks
        ]
        self.labels = torch.full((len(source),), -1, dtype=torch.int64)
        self.pictures = _Pictures(torch.tensor(shown(len(source))))
        self.blocks: list[int] = []
        self.extraction = Extraction()
        self._saved_rows: list[dict[str, int]] = [{} for _ in asks]
        self._saved_pictures = 0

    def run(self) -> Pass:
        """Do all that is not done yet.

        Raises:
            DataError: an image that cannot be read or whose features are not finite. What was done before is saved.
        """
        resumed, todo = self._resume()
        unsaved = 0
        try:
            for part in whole_blocks(self._timed(self.source.parts(todo)), len(self.source)):
                self._take(part)
                unsaved += len(part.index)
                if unsaved >= self.save_every:
                    self._save()
                    unsaved = 0
        finally:
            self.extraction.close()
            if unsaved:
                self._save()
        return self._finish(resumed)

    def _resume(self) -> tuple[int, list[int]]:
        """Take over what is on disk: how many images that was, and this process's share of the blocks left."""
        every = torch.arange(block_count(len(self.source)))
        done = torch.empty(0, dtype=torch.int64)
        if self.progress is not None:
            done, states = self.progress.states()
            kept = self.progress.kept() if self.rank == 0 else []
            self._wait()  # nobody saves before all have read
            for state in states:
                self._take_over(state)
            for rows in kept:
                self._take_over_rows(rows, done)
            self._mark_saved()
        left = every[~torch.isin(every, done)]
        resumed = len(indices_of(done.tolist(), len(self.source)))
        self.tick(resumed)
        return resumed, indices_of(left[self.rank :: self.world].tolist(), len(self.source))

    def _take_over(self, state: dict[str, Tensor]) -> None:
        self.blocks += state[BLOCKS].tolist()
        self.labels = torch.maximum(self.labels, state["labels"])
        seconds = state[TIMES].tolist()
        self.times = Times(*(mine + theirs for mine, theirs in zip(self.times.tensor().tolist(), seconds)))
        for key, value in self.sums.items():
            value += state[f"tally/{key}"]
        for collector in self.collectors:
            prefix = f"{collector.name}/"
            collector.add_state({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})

    def _take_over_rows(self, rows: dict[str, Tensor], done: Tensor) -> None:
        for collector in self.collectors:
            prefix = f"{collector.name}/"
            own = {key.removeprefix(prefix): value for key, value in rows.items() if key.startswith(prefix)}
            collector.add_kept(own, done)
        if "pictures.index" in rows:
            use = in_blocks(rows["pictures.index"], done)
            self.pictures.index.append(rows["pictures.index"][use])
            self.pictures.images.append(rows["pictures.rows"][use])

    def _timed(self, parts: Iterator[Part]) -> Iterator[Part]:
        """`parts`, with the time they take to come."""
        while True:
            begun = time.perf_counter()
            part = next(parts, None)
            self.times.sampling += time.perf_counter() - begun
            if part is None:
                return
            yield part

    def _take(self, part: Part) -> None:
        index = torch.tensor(part.index)
        if self.writer is not None:
            self.writer.write(part)
        for ask, collector in zip(self.asks, self.collectors):
            begun = time.perf_counter()
            features = self.extraction(ask.extractor, part.images)
            self._check_finite(features, part)  # waits for the device
            extracted = time.perf_counter()
            collector.update(index, features)
            self.times.extraction += extracted - begun
            self.times.statistics += time.perf_counter() - extracted
        if part.labels is not None:
            self.labels[index] = part.labels
        self.pictures.update(index, part.images)
        self.blocks.append(part.index[0] // BLOCK)
        self.tick(len(part.index))

    def _check_finite(self, features: dict[str, Tensor], part: Part) -> None:
        for layer, value in features.items():
            bad = ~value.isfinite().all(1)
            if bad.any():
                first = part.index[int(bad.nonzero()[0])]
                raise DataError(
                    f"{self.source.name(first)}: its features ({layer}) are NaN or infinite and spoil every score;"
                    " check the extractor's weights, or run it in strict precision"
                )

    def _save(self) -> None:
        if self.progress is None:
            return
        state = {BLOCKS: torch.tensor(self.blocks), TIMES: self.times.tensor(), "labels": self.labels}
        state |= {f"tally/{key}": value for key, value in self.sums.items()}
        kept: dict[str, Tensor] = {}
        for collector, start in zip(self.collectors, self._saved_rows):
            state |= {f"{collector.name}/{key}": value for key, value in collector.state().items()}
            kept |= {f"{collector.name}/{key}": value for key, value in collector.kept(start).items()}
        if self.pictures.index[self._saved_pictures :]:
            kept["pictures.index"] = torch.cat(self.pictures.index[self._saved_pictures :])
            kept["pictures.rows"] = torch.cat(self.pictures.images[self._saved_pictures :])
        self.progress.save(state, kept)
        self._mark_saved()

    def _mark_saved(self) -> None:
        self._saved_pictures = len(self.pictures.index)
        self._saved_rows = [
            {name: len(layer.rows) for name, layer in collector.layers.items()} for collector in self.collectors
        ]

    def _finish(self, resumed: int) -> Pass:
        seconds = self.times.tensor()
        add_up(seconds)
        for value in self.sums.values():
            add_up(value)
        present = self.labels + 1  # 0 on all processes but one
        add_up(present)
        labels = present - 1 if bool((present > 0).all()) else None
        size = self.source.image_size
        index = torch.cat([torch.empty(0, dtype=torch.int64), *self.pictures.index])
        pictures = gather_rows(
            index, torch.cat([torch.empty(0, 3, size, size, dtype=torch.uint8), *self.pictures.images])
        )
        found = {}
        for ask, collector in zip(self.asks, self.collectors):
            layers, inception = collector.finish()
            shown = labels[self.pictures.chosen] if labels is not None else None
            found[ask.extractor.name] = Collected(layers, inception, labels, pictures, shown, collector.problems)
        return Pass(found, Times(*seconds.tolist()), resumed)

    def _wait(self) -> None:
        if self.processes is not None:
            self.processes.wait_for_everyone()
