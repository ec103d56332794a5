"""The reports on known runs, the studio's and those of `genlab evaluate`, named to pages by an id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genlab.evaluation.comparison import Saved
from genlab.evaluation.metrics import KNOWN
from genlab.evaluation.report import JSON, PAGE
from genlab.studio.catalog import Entry
from genlab.studio.score_orders import report_folders

CLASSES = "classes"
"""Folder beside a report: a strip of images for some classes, LABEL.png, from the same samples."""
_LARGEST = 2**24  # bytes of a report
_UNTOLD = ("cache",)  # settings that names do not mention
_SHOWN = 3  # of the worst and of the best classes

Number: TypeAlias = Annotated[float, Field(ge=-1e12, le=1e12)]
"""What a picture can place."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReportScore(_Part):
    """One score."""

    name: str
    metric: Literal[tuple(KNOWN)]  # type: ignore[valid-type]
    value: Number | None
    better: Literal["lower", "higher", "neither"]
    interval_95: tuple[Number, Number] | None = None
    per_class: dict[int, Number | None] = Field(default_factory=dict)

    def extremes(self) -> tuple[list[int], list[int]]:
        """Labels of the worst classes and of the best ones, from the outermost on; none where there is one class."""
        known = {label: value for label, value in self.per_class.items() if value is not None}
        ranked = sorted(known, key=lambda label: known[label] if self.better == "higher" else -known[label])
        few = min(_SHOWN, len(ranked) // 2)
        return ranked[:few], ranked[: -few - 1 : -1]


class ReportProtocol(_Part):
    """What a page says of the protocol."""

    name: str
    title: str


class ReportSubject(_Part):
    """How the images were made."""

    sampling: dict[str, Any] = Field(default_factory=dict)
    label_rule: str = "balanced"
    rounding: str = "half_up"


class ReportTree(_Part):
    """A report as a page needs it; anything in the file may have been written by others."""

    format: Literal[1]
    title: str
    samples: int
    seed: int | None
    protocol: ReportProtocol
    subject: ReportSubject
    scores: tuple[ReportScore, ...]
    cost: dict[str, Number | None]
    banners: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        """The words for a label."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


@dataclass(frozen=True)
class KnownReport:
    """A sound report on a known generator."""

    id: str
    """What pages call it."""
    entry: Entry
    folder: Path
    tree: ReportTree
    at: float
    """When it was written, in seconds since 1970."""

    @property
    def changed(self) -> str:
        """The settings that are not the run's own, in words."""
        own = self.entry.sampling.model_dump(mode="json")
        told = {key: value for key, value in self.tree.subject.sampling.items() if key not in _UNTOLD}
        return ", ".join(f"{key} {value}" for key, value in told.items() if key in own and value != own[key])[:120]

    @property
    def label(self) -> str:
        """The run and what is special about this report."""
        return ", ".join(filter(None, [self.entry.name, self.changed]))

    @property
    def group(self) -> str:
        """Reports with the same words can be compared."""
        return f"{self.tree.protocol.name}, {self.tree.samples:,} images"

    @property
    def page(self) -> Path:
        """The report as a page of its own."""
        return self.folder / PAGE

    def saved(self) -> Saved:
        """As comparisons take it. What cost nothing was not counted."""
        return Saved(self.label, {**self.tree.model_dump(), "cost": {k: v for k, v in self.tree.cost.items() if v}})

    def strip(self, label: int) -> Path | None:
        """Images of a class, if they were kept."""
        file = self.folder / CLASSES / f"{label}.png"
        return file if file.is_file() else None


def known_reports(entries: Iterable[Entry], jobs: Path) -> list[KnownReport]:
    """All sound reports on `entries`, newest first; links that lead out of their runs are left out."""
    found = [
        report
        for entry in entries
        for home in report_folders(entry, jobs)
        for file in home.glob(f"*/{JSON}")
        if file.resolve().is_relative_to(home.resolve()) and (report := read_report(entry, file)) is not None
    ]
    return sorted(found, key=lambda report: report.at, reverse=True)


def read_report(entry: Entry, file: Path) -> KnownReport | None:
    """The report in `file`; None if there is none, or a damaged one."""
    try:
        status = file.stat()
        tree = _tree(file, status.st_mtime_ns) if status.st_size <= _LARGEST else None
    except OSError:
        return None
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
    return None if tree is None else KnownReport(name, entry, file.parent, tree, status.st_mtime)


@lru_cache(1024)
def _tree(file: Path, changed: int) -> ReportTree | None:
    try:
        return ReportTree.model_validate_json(file.read_bytes())
    except ValidationError:
        return None
