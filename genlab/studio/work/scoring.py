"""The work of the Score panel: `genlab evaluate` in a process of its own, and images of the worst and best classes."""

from __future__ import annotations

import base64
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genlab.core.errors import GenlabError
from genlab.evaluation.drawings import grid_png
from genlab.evaluation.quantise import Rounding, quantise
from genlab.evaluation.report import JSON
from genlab.evaluation.sources import label_plan
from genlab.sampling import sample_images
from genlab.studio.models import Models
from genlab.studio.reports import CLASSES, KnownReport, read_report
from genlab.studio.score_orders import ScoreOrder
from genlab.studio.work.command import run_command
from genlab.studio.worker import Running

_STRIP = 8  # images of a class
_TAIL = 4096  # bytes at the end of a log that surely hold the progress
_PROGRESS = {"TQDM_BAR_FORMAT": "{desc}|{n}|{total}|{elapsed_s}|", "TQDM_MININTERVAL": "0.2"}
_LINE = re.compile(r"(reference|images)\|(\d+)\|(\d+|None)\|([\d.]+)\|")


def score(running: Running, models: Models) -> dict[str, Any]:
    """Fill a ScoreOrder: the id of the `report`, its `scores`, `cost` and `warnings`, and the name of its `page`.

    Stopped, or even killed, it goes on where it was when the same is ordered again.
    """
    job = running.job
    order = ScoreOrder.of(job.wants)
    folder = order.folder(job.folder.parents[1])
    words = [*order.words(str(order.entry.run)), "--out", str(folder)]
    log = job.folder / "evaluation.log"
    running.show(0.0, "Loading the judges")
    run_command(running, models, words, log, Course(running, log).look, signal.SIGINT, _PROGRESS)
    report = read_report(order.entry, folder / JSON)
    if report is None:
        raise GenlabError(f"{folder}: the evaluation left no sound report")
    running.show(1.0, "Making images of the worst and best classes", left=None)
    _strips(running, models, report)
    shutil.copy(report.page, job.results)
    told = report.tree.model_dump(mode="json", include={"scores", "cost", "banners", "warnings", "samples"})
    return {"report": report.id, "page": report.page.name, **told}


class Course:
    """An evaluation's progress bars, read from its log."""

    def __init__(self, running: Running, log: Path):
        self._running, self._log = running, log
        self._shown: tuple[str, ...] = ()
        self._first = (0, 0.0)

    def look(self) -> None:
        """Show what is new."""
        with self._log.open("rb") as file:
            file.seek(max(self._log.stat().st_size - _TAIL, 0))
            found = _LINE.findall(file.read().decode("utf-8", "replace"))
        if not found or found[-1] == self._shown:
            return
        self._shown = found[-1]
        what, done, total, seconds = self._shown
        if what == "reference":
            self._running.show(0.0, f"Reading the reference: {int(done):,} images")
        elif total != "None":
            self._show(int(done), int(total), float(seconds))

    def _show(self, done: int, total: int, seconds: float) -> None:
        if done == total:
            self._running.show(1.0, "Computing the scores", left=None)
            return
        if not self._first[1]:  # what an evaluation before had done comes first, and at once
            self._first = (done, seconds)
        made, spent = done - self._first[0], seconds - self._first[1]
        speed = made / spent if spent > 0 else 0.0
        words = f"{done:,} of {total:,} images" + (f" · {speed:.3g} images/s" if speed else "")
        self._running.show(done / total, words, left=(total - done) / speed if speed else None)


@torch.no_grad()
def _strips(running: Running, models: Models, report: KnownReport) -> None:
    """Images of the classes that a page shows, the first that were scored: their seed and number make them again."""
    wanted = {label for score in report.tree.scores for labels in score.extremes() for label in labels}
    if not wanted:
        return
    generator, tree = models.get(report.entry), report.tree
    settings = type(generator.sampling).model_validate(tree.subject.sampling)
    rule = partial(quantise, rule=Rounding(tree.subject.rounding))
    seed = tree.seed or 0
    labels = label_plan(generator.network.num_classes, tree.samples, tree.subject.label_rule, seed)
    home = report.folder / CLASSES
    home.mkdir(exist_ok=True)
    for label in sorted(wanted):
        running.check()
        index = [i for i, planned in enumerate(labels) if planned == label][:_STRIP]
        if not index:
            continue
        parts = sample_images(generator, labels, seed, index, _STRIP, settings, quantise=rule)
        images = torch.cat([part.images.cpu() for part in parts])
        (home / f"{label}.png").write_bytes(base64.b64decode(grid_png(images, _STRIP)))
