"""The work of the Compare panel: several orders filled one after another, and what each of them costs."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import Event
from genlab.core.evaluations import Evaluations
from genlab.core.generator import Generator
from genlab.sampling import sample_images
from genlab.studio.compare_orders import Comparison
from genlab.studio.models import Models
from genlab.studio.orders import Order
from genlab.studio.pictures import to_png
from genlab.studio.work.generating import fill
from genlab.studio.worker import Running

_ARCHIVE = "comparison.zip"
_TABLE = "comparison.json"  # in the archive


def compare(running: Running, models: Models) -> dict[str, Any]:
    """Fill the orders of a Comparison.

    Gives `columns`, one for each order, with its `files` below the job's results, `seconds` for an image,
    `evaluations` of the network for an image and the network's `parameters`; and the `archive` of all. Frames have the
    columns so far; the last of them may have `pictures`, pairs of data URI and caption, and no costs yet.
    """
    comparison = Comparison.of(running.job.wants)
    columns: list[dict[str, Any]] = []
    for number, order in enumerate(comparison.orders):
        running.check()
        generator = models.get(order.entry)
        _warm_up(generator, order)
        column = _Column(running, comparison, columns, generator.device)
        with Evaluations().counting(generator.network) as evaluations:
            images = fill(column, generator, order)
        cost = {
            "seconds": column.seconds() / len(images),
            "evaluations": evaluations.rows / len(images),
            "parameters": sum(parameter.numel() for parameter in generator.network.parameters()),
        }
        columns.append({"files": _deliver(order, images, running.job.results, number), **cost})
        column.show_finished()
    archive = running.job.results / _ARCHIVE
    _pack(archive, comparison, columns)
    return {"columns": columns, "archive": archive.name}


class _Column(Running):
    """The part of a job that fills one of its orders: shows its news beside the finished columns, and keeps its time.

    What lies between `check` and `show` is a preview, which is no part of the sampling's time.
    """

    def __init__(self, running: Running, comparison: Comparison, finished: list[dict[str, Any]], device: torch.device):
        self._running, self._finished, self._heading = running, finished, comparison.heading(len(finished))
        work = [comparison.work(number) for number in range(len(comparison.orders))]
        self._before, self._share = sum(work[: len(finished)]) / sum(work), work[len(finished)] / sum(work)
        self._device, self._previews = device, 0.0
        self._begun = self._checked = self._now()

    def seconds(self) -> float:
        """What the sampling has taken since the column was made."""
        return self._now() - self._begun - self._previews

    def check(self) -> None:
        self._running.check()
        self._checked = self._now()

    def show(self, done: float, words: str = "", **content: Any) -> None:
        forming = {"pictures": content["pictures"]}
        said = " · ".join(filter(None, (self._heading, words)))
        self._running.show(self._before + self._share * done, said, columns=[*self._finished, forming])
        now = self._now()
        self._previews, self._checked = self._previews + now - self._checked, now

    def show_finished(self) -> None:
        """News once the column is among the finished ones."""
        self._running.show(self._before + self._share, self._heading, columns=self._finished)

    def _now(self) -> float:
        """Once the device has done what it was told."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.monotonic()


class _Enough(Exception):
    """One step has been done."""


def _warm_up(generator: Generator, order: Order) -> None:
    """The first step of the first image: what a device does only once is no part of a model's time."""

    def end(event: Event) -> None:
        raise _Enough

    try:
        list(sample_images(generator, order.labels, order.seed, [0], 1, order.settings, end))
    except _Enough:
        return


def _deliver(order: Order, images: Mapping[int, Tensor], results: Path, number: int) -> list[tuple[str, str]]:
    """Each image as a PNG file in a folder of its order; names below `results`, with captions."""
    folder = results / str(number + 1)
    folder.mkdir()
    named = []
    for index, image in sorted(images.items()):
        file = folder / f"{index:06d}-{order.labels[index]:04d}.png"
        file.write_bytes(to_png(image, order.metadata(index)))
        named.append((str(file.relative_to(results)), order.caption(index)))
    return named


def _pack(archive: Path, comparison: Comparison, columns: list[dict[str, Any]]) -> None:
    """All images, and what they were made by at which cost."""
    table = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for order, column in zip(comparison.orders, columns):
            for name, _ in column["files"]:
                zipped.write(archive.parent / name, name)
            folder = Path(column["files"][0][0]).parent.name
            costs = {key: column[key] for key in ("parameters", "evaluations", "seconds")}
            settings = order.settings.model_dump(mode="json")
            table.append({"folder": folder, "run": order.entry.name, **costs, "sampling": settings})
        zipped.writestr(_TABLE, json.dumps(table, indent=1))
