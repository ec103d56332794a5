"""Several saved reports in one table, and what quality costs in each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.core.errors import DataError
from genlab.core.files import write_text
from genlab.evaluation.drawings import Point, axis_for, pareto, plot_svg
from genlab.evaluation.intervals import RESEED
from genlab.evaluation.metrics import KNOWN
from genlab.evaluation.report import FORMAT, JSON, format_score, template
from genlab.evaluation.tables import print_rows

_COSTS = {
    "evaluations_per_image": "NFE",
    "seconds_per_image": "seconds per image",
    "parameters": "parameters",
}
"""What is better if lower, for plots."""
_COLUMNS = {"evaluations_per_image": "NFE", "images_per_second": "images per second", "parameters": "parameters"}


@dataclass(frozen=True)
class Saved:
    """A report read from disk."""

    name: str
    tree: dict[str, Any]

    def score(self, name: str) -> dict[str, Any] | None:
        """One score of it, by the name reports use."""
        return next((score for score in self.tree["scores"] if score["name"] == name), None)

    @property
    def cost(self) -> dict[str, float]:
        """What an image costs, by the names of reports, and images per second of a process."""
        seconds = self.tree["cost"].get("seconds_per_image")
        return {**self.tree["cost"], **({"images_per_second": 1 / seconds} if seconds else {})}


def gather(targets: Sequence[Path]) -> list[Saved]:
    """All reports in files, report folders and run folders; named by what they scored, or where that is not enough by
    their folders.

    Raises:
        DataError: nothing there, or a damaged file.
    """
    files: list[Path] = []
    for target in targets:
        found = [target] if target.is_file() else sorted(target.rglob(JSON))
        if not found:
            raise DataError(f"{target}: holds no {JSON}; make one with genlab evaluate {target}")
        files += found
    trees = {file: _read(file) for file in dict.fromkeys(files)}
    titles = [tree["title"] for tree in trees.values()]
    unique = len(set(titles)) == len(titles)
    return [Saved(tree["title"] if unique else str(file.parent), tree) for file, tree in trees.items()]


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree["format"] == FORMAT:
            return {**tree, "title": str(tree["title"])}
        raise DataError(f"{file}: a report of format {tree['format']}, this genlab reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: no report of genlab's ({error})") from error


def score_names(reports: Sequence[Saved]) -> list[str]:
    """Every score that any report has, in order of appearance."""
    return list(dict.fromkeys(score["name"] for report in reports for score in report.tree["scores"]))


def remarks(reports: Sequence[Saved]) -> list[str]:
    """What forbids a comparison, and which gaps are within noise."""
    notes = []
    for key, word in (("samples", "numbers of images"), ("protocol", "protocols")):
        values = {json.dumps(report.tree[key] if key == "samples" else report.tree[key]["name"]) for report in reports}
        if len(values) > 1:
            notes.append(
                f"the reports use different {word} ({', '.join(sorted(values))}): their scores are not comparable"
            )
    for name in score_names(reports):
        scored = [(report, score) for report in reports if (score := report.score(name)) and score["value"] is not None]
        if len(scored) < 2 or KNOWN[scored[0][1]["metric"]].better == "neither":
            continue
        reverse = scored[0][1]["better"] == "higher"
        (best, best_score), *others = sorted(scored, key=lambda item: item[1]["value"], reverse=reverse)
        tied = [report.name for report, score in others if _tie(best_score, score)]
        if tied:
            notes.append(f"{name}: the best, {best.name}, is within noise of {', '.join(tied)}")
    return notes


def _tie(one: dict[str, Any], other: dict[str, Any]) -> bool:
    halves = [(s["interval_95"][1] - s["interval_95"][0]) / 2 if s["interval_95"] else 0.0 for s in (one, other)]
    gap = abs(one["value"] - other["value"])
    return gap <= max(math.hypot(*halves), RESEED * abs(one["value"]))


def print_comparison(reports: Sequence[Saved]) -> None:
    """The table and the remarks in the terminal."""
    rows = [[name, *(_cell(report, name) for report in reports)] for name in score_names(reports)]
    for key, title in _COLUMNS.items():
        rows.append([title, *(_number(report.cost.get(key)) for report in reports)])
    print_rows(["", *(report.name for report in reports)], rows)
    for note in remarks(reports):
        print(f"note: {note}")


def _cell(report: Saved, name: str) -> str:
    score = report.score(name)
    return format_score(score["value"]) if score else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else format_score(value)


def write_comparison(folder: Path, reports: Sequence[Saved]) -> Path:
    """Write `comparison.html`; its path."""
    names = score_names(reports)
    rows = [
        {"name": report.name, "scores": [report.score(name) for name in names], "cost": report.cost}
        for report in reports
    ]
    page = template("comparison.html").render(
        rows=rows,
        names=names,
        costs=_COLUMNS,
        notes=remarks(reports),
        plots=_plots(reports),
        format=format_score,
        number=_number,
    )
    write_text(folder / "comparison.html", page)
    return folder / "comparison.html"


def _plots(reports: Sequence[Saved]) -> list[dict[str, str]]:
    """Quality against each cost: the first score that all reports with costs share."""
    costly = [report for report in reports if report.tree["cost"]]
    shared = [name for name in score_names(costly) if all(report.score(name) for report in costly)]
    if len(costly) < 2 or not shared:
        return []
    name = next((name for name in shared if costly[0].score(name)["metric"] == "fid"), shared[0])  # type: ignore[index]
    differing = [key for key in _COSTS if len({report.tree["cost"].get(key) for report in costly}) > 1]
    return [_plot(costly, name, key, _COSTS[key]) for key in differing if all(key in r.tree["cost"] for r in costly)]


def _plot(reports: Sequence[Saved], name: str, cost: str, title: str) -> dict[str, str]:
    scores = [score for report in reports if (score := report.score(name))]
    places = [(float(report.tree["cost"][cost]), float(score["value"])) for report, score in zip(reports, scores)]
    best = pareto(places, scores[0]["better"])
    points = [
        Point(x, y, report.name.rsplit("/", 1)[-1], None, score["interval_95"], front)
        for (x, y), report, score, front in zip(places, reports, scores, best)
    ]
    svg = plot_svg(points, axis_for(title, [x for x, _ in places]), axis_for(name, [y for _, y in places]))
    return {"title": f"{name} against {title}", "svg": svg}
