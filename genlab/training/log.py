"""What a run says while it trains: a progress bar, log.jsonl, and trackers through Accelerate."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from genlab.core.files import write_text


class Log:
    """Collects the values of steps and writes their means every `every` images. Only the main process writes.

    `figures` gives further values at that moment; it is called on all processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        file: Path,
        total: int,
        start: int,
        every: int,
        figures: Callable[[], dict[str, float]],
    ):
        self.accelerator, self.file, self.every, self.figures = accelerator, file, every, figures
        self.sums: dict[str, float] = {}
        self.counts: Counter[str] = Counter()  # a role that has no turn in some steps has fewer values
        self.images, self.since = start, time.perf_counter()  # since the last line
        self.seen = start
        self.active = accelerator.is_main_process
        if self.active:
            self._forget_after(start)
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="img",
            unit_scale=True,
            disable=not self.active,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a log file wants few lines
        )

    def step(self, images: int, values: dict[str, float], rate: float) -> None:
        """Account for one step that ended at `images` images seen."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] += 1
        if self.active:
            self.bar.update(images - self.bar.n)
        if images // self.every > self.seen // self.every:  # multiples, so that a resumed run logs at the same places
            self._flush(images, rate)
        self.seen = images

    def write(self, images: int, values: dict[str, Any]) -> None:
        """Write one line of other values (scores, ...) at once."""
        if self.active:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"images": images, **values}) + "\n")
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, step=images)

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _flush(self, images: int, rate: float) -> None:
        now = time.perf_counter()
        speed = (images - self.images) / max(now - self.since, 1e-9)
        means = {name: total / self.counts[name] for name, total in self.sums.items()} | self.figures()
        memory = peak_memory(self.accelerator.device)
        self.write(images, {**means, "lr": rate, "images_per_second": round(speed, 1), "memory_gib": memory})
        loss = next(iter(means.values()), float("nan"))
        self.bar.set_postfix_str(f"loss {loss:.4f}, {memory:.2f} GiB", refresh=False)
        self.sums, self.counts, self.images, self.since = {}, Counter(), images, now

    def _forget_after(self, images: int) -> None:
        """A resumed run writes again what a killed one wrote after its last checkpoint."""
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["images"] <= images:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue  # the half line of a killed process
        write_text(self.file, "".join(kept))


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: on the device, or resident for the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
