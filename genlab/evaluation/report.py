"""The report of an evaluation: one JSON-able tree, written as JSON and as a page that needs nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from torch import Tensor

from genlab.core.files import write_text
from genlab.evaluation.drawings import Axis, Point, grid_png, plot_svg
from genlab.evaluation.expected import Check
from genlab.evaluation.metrics import KNOWN
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.scores import Score

Pictures: TypeAlias = dict[str, tuple[Tensor, Tensor | None]]
"""Title -> uint8 images [n,3,R,R] and their labels [n], shown as grids."""

FORMAT = 1
JSON, PAGE = "report.json", "report.html"
_SHOWN_CLASSES = 8  # worst and best of each


@dataclass
class Report:
    """All that is known about one evaluation."""

    title: str
    subject: dict[str, Any]
    protocol: Protocol
    samples: int
    seed: int | None
    labels: dict[str, Any]
    scores: list[Score]
    references: dict[str, Any]
    extractors: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: dict[str, float]
    """sampling, extraction, statistics, reference, metrics; sampling to statistics summed over processes."""
    banners: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    """parameters, evaluations_per_image (NFE), seconds_per_image; where a generator was sampled."""
    class_names: tuple[str, ...] = ()
    repeats: int = 1
    """Seeds that the scores are means over: `seed` and those after it."""

    def tree(self) -> dict[str, Any]:
        """JSON-able; NaN and infinity become null."""
        scores = [
            {
                "name": score.name,
                "metric": score.metric,
                "value": score.value,
                "better": KNOWN[score.metric].better,
                "interval_95": list(score.interval) if score.interval else None,
                **score.detail,
                **({"per_class": score.per_class} if score.per_class else {}),
            }
            for score in self.scores
        ]
        checks = [
            {
                "metric": c.expected.metric,
                "expected": c.expected.value,
                "found": c.found,
                "verdict": c.verdict,
                "text": c.text,
            }
            for c in self.checks
        ]
        tree = {"format": FORMAT, **asdict(self), "protocol": self.protocol.model_dump(mode="json")}
        return _plain({**tree, "scores": scores, "checks": checks})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(folder: Path, report: Report, pictures: Pictures) -> None:
    """Write `report.json` and `report.html`."""
    tree = report.tree()
    write_text(folder / JSON, json.dumps(tree, indent=1, ensure_ascii=False))
    grids = [
        {"title": title, "png": grid_png(_by_label(images, labels)), "sorted": labels is not None}
        for title, (images, labels) in pictures.items()
    ]
    page = template("report.html").render(
        report=tree,
        grids=grids,
        plots=_plots(report),
        classes=_classes(report),
        meaning=_meanings(),
        format=format_score,
    )
    write_text(folder / PAGE, page)


def template(name: str) -> jinja2.Template:
    """One of genlab's pages."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def format_score(value: float | None) -> str:
    """Four significant digits, without an exponent where it can be read."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        return f"{value:.{min(max(0, 3 - math.floor(math.log10(abs(value)))), 5)}f}"
    return f"{value:.3g}"


def _meanings() -> dict[str, str]:
    return {name: metric.meaning for name, metric in KNOWN.items()}


def _by_label(images: Tensor, labels: Tensor | None) -> Tensor:
    return images if labels is None else images[labels.argsort(stable=True)]


def _plots(report: Report) -> list[dict[str, str]]:
    """Precision against recall, for each extractor that has both."""
    found = {score.name: score for score in report.scores}
    plots = []
    for name, score in found.items():
        if score.metric != "precision" or (other := found.get(name.replace("precision", "recall"))) is None:
            continue
        label = report.title.rsplit("/", 1)[-1]
        point = Point(other.value, score.value, label, other.interval, score.interval, front=True)
        suffix = name.removeprefix("precision").removeprefix("_") or "Inception"
        svg = plot_svg([point], Axis("recall (variety)", 0, 1), Axis("precision (fidelity)", 0, 1))
        plots.append({"title": f"Fidelity and variety on {suffix}", "svg": svg})
    return plots


def _classes(report: Report) -> list[dict[str, Any]]:
    """For each score by class: rows worst to best, all if they are few."""
    tables = []
    for score in report.scores:
        if not score.per_class:
            continue
        higher = KNOWN[score.metric].better == "higher"
        known = {label: value for label, value in score.per_class.items() if math.isfinite(value)}
        ranked = sorted(known.items(), key=lambda item: item[1] if higher else -item[1])
        top = max(known.values(), default=1.0) or 1.0
        rows = [
            {"name": report.class_names[k] if k < len(report.class_names) else str(k), "value": v, "share": v / top}
            for k, v in ranked
        ]
        split = len(rows) > 2 * _SHOWN_CLASSES
        worst, best = (rows[:_SHOWN_CLASSES], rows[: -_SHOWN_CLASSES - 1 : -1]) if split else (rows, [])
        tables.append({"name": score.name, "worst": worst, "best": best, "all": not split, "higher": higher})
    return tables
