"""The Score panel's pieces of HTML. Every word of a report is escaped here: others may have written it."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from genlab.evaluation.comparison import remarks
from genlab.evaluation.drawings import Point, axis_for, pareto, plot_svg
from genlab.evaluation.metrics import KNOWN
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.report import format_score
from genlab.studio.pictures import file_to_data_uri
from genlab.studio.reports import KnownReport, ReportScore

_ARROW = {"lower": "↓", "higher": "↑", "neither": ""}
_NAME = 32  # letters of a point's name
_LARGEST_PAGE = 2**24  # bytes of a report that a page can hold


class Axis(NamedTuple):
    """Something to hold quality against."""

    title: str
    rising: bool
    """More is better."""


AXES = {
    "images_per_second": Axis("images per second", rising=True),
    "evaluations_per_image": Axis("evaluations of the network per image (NFE)", rising=False),
    "parameters": Axis("parameters", rising=False),
}
"""What a report says an image costs -> words."""


def report(known: KnownReport) -> str:
    """The scores with their intervals, what to mind, and the worst and best classes."""
    tree = known.tree
    seed = "" if tree.seed is None else f"seed {tree.seed}"
    when = time.strftime("%d %b %Y, %H:%M", time.localtime(known.at))
    facts = [tree.protocol.name, f"{tree.samples:,} images", seed, known.changed, when]
    spans = " ".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    card = f'<div class="card"><strong>{escape(known.entry.name)}</strong> {spans}</div>'
    by_class = "".join(_classes(known, score) for score in tree.scores if score.extremes()[0])
    return card + _scores(tree.scores) + _notes([*tree.banners, *tree.warnings]) + by_class


def about(protocol: Protocol) -> str:
    """What a protocol is."""
    note = f" Mind: {escape(protocol.note)}." if protocol.note else ""
    return f'<p class="hint">{escape(protocol.title)}.{note}</p>'


def no_reports() -> str:
    """What to do when nothing was scored."""
    return '<div class="card empty">No report yet. Score a run, here or with <code>genlab evaluate</code>.</div>'


def _scores(scores: Sequence[ReportScore]) -> str:
    rows = []
    for score in scores:
        meaning = KNOWN[score.metric].meaning
        value = f"{format_score(score.value)} {_ARROW[score.better]}"
        cells = f"<td>{value}</td><td>{_interval(score)}</td><td>{escape(meaning)}</td>"
        rows.append(f'<tr><th scope="row">{escape(score.name)}</th>{cells}</tr>')
    heads = _heads("Score", "Value", "95 % interval", "What it is")
    return f'<div class="runs scores"><table>{heads}<tbody>{"".join(rows)}</tbody></table></div>'


def _heads(*words: str) -> str:
    cells = "".join(f'<th scope="col">{escape(word)}</th>' for word in words)
    return f"<thead><tr>{cells}</tr></thead>"


def _interval(score: ReportScore) -> str:
    return " – ".join(map(format_score, score.interval_95)) if score.interval_95 else ""


def _notes(words: Sequence[str]) -> str:
    if not words:
        return ""
    rows = "".join(f"<li>{escape(note)}</li>" for note in words)
    return f'<details class="notes"><summary>Mind ({len(words)})</summary><ul>{rows}</ul></details>'


def _classes(known: KnownReport, score: ReportScore) -> str:
    """The worst and the best classes of a score, with images where they were kept."""
    halves = dict(zip(("Worst", "Best"), score.extremes()))
    columns = "".join(
        f"<div><h3>{title}</h3>{''.join(_class(known, score, label) for label in labels)}</div>"
        for title, labels in halves.items()
    )
    return f'<h2 class="by-class">{escape(score.name)} by class</h2><div class="classes">{columns}</div>'


def _class(known: KnownReport, score: ReportScore, label: int) -> str:
    name = escape(known.tree.class_name(label))
    file = known.strip(label)
    words = f"Samples of class {name}"
    strip = "" if file is None else f'<img src="{file_to_data_uri(file)}" alt="{words}">'
    value = format_score(score.per_class[label])
    return f'<div class="class"><strong>{name}</strong> <span>{value}</span>{strip}</div>'


def whole(known: KnownReport) -> str:
    """The report's own page, which may run nothing, and a link to keep it."""
    try:
        content = known.page.read_bytes()[: _LARGEST_PAGE + 1]
    except OSError:
        return '<p class="hint">There is no page of this report.</p>'
    if len(content) > _LARGEST_PAGE:
        return '<p class="hint">The page is too large to be shown here.</p>'
    name = escape(f"{known.entry.name}-{known.tree.protocol.name}.html")
    link = f"data:text/html;base64,{base64.b64encode(content).decode('ascii')}"
    shown = escape(content.decode("utf-8", "replace"))
    return (
        f'<p><a href="{link}" download="{name}">Download it</a></p>'
        f'<iframe class="report" title="Report" sandbox srcdoc="{shown}"></iframe>'
    )


def comparison(reports: Sequence[KnownReport], metric: str, cost: str) -> str:
    """Quality against cost, as a picture and as a table, with what must be minded."""
    saved = {report.id: report.saved() for report in reports}
    rows = [
        (report, score, saved[report.id].cost.get(cost))
        for report in reports
        for score in report.tree.scores
        if score.name == metric and score.value is not None
    ]
    if not rows:
        return '<p class="hint">Nothing to compare yet.</p>'
    axis, better = AXES[cost], rows[0][1].better
    placed = [(report, score, x) for report, score, x in rows if x is not None]
    signed = [(-x if axis.rising else x, score.value or 0.0) for _, score, x in placed]
    fronts = pareto(signed, better) if len(placed) > 1 else [False]
    best = {report.id for (report, _, _), front in zip(placed, fronts) if front}
    points = [
        Point(x, score.value or 0.0, _point(report, reports), None, score.interval_95, report.id in best)
        for report, score, x in placed
    ]
    heading = f"{metric} {_ARROW[better]}"
    ranked = sorted(rows, key=lambda row: row[1].value or 0.0, reverse=better == "higher")
    cells = [_compared(report, score, saved[report.id].cost, report.id in best) for report, score, _ in ranked]
    heads = _heads("Run", heading, "95 % interval", "Images/s", "NFE", "Parameters", "")
    notes = _notes([note for note in remarks(list(saved.values())) if note.startswith(f"{metric}:")])
    return (
        f'<div class="plot">{_plot(points, axis, heading)}</div>'
        f'<div class="runs compared"><table>{heads}<tbody>{"".join(cells)}</tbody></table></div>{notes}'
    )


def _plot(points: Sequence[Point], axis: Axis, heading: str) -> str:
    if not points:
        return ""
    across = axis_for(axis.title, [point.x for point in points], axis.rising)
    return plot_svg(points, across, axis_for(heading, [point.y for point in points]))


def _point(report: KnownReport, others: Sequence[KnownReport]) -> str:
    """Its run, and what else tells it from another report on that run."""
    alone = sum(other.entry.id == report.entry.id for other in others) == 1
    return (report.entry.name if alone else report.label)[:_NAME]


def _compared(report: KnownReport, score: ReportScore, cost: Mapping[str, float], best: bool) -> str:
    """A row of the comparison."""
    run = f"<strong>{escape(report.entry.name)}</strong> <span>{escape(report.changed)}</span>"
    numbers = [format_score(score.value), _interval(score), *(_amount(cost.get(key)) for key in AXES)]
    cells = "".join(f"<td>{cell}</td>" for cell in [*numbers, "best trade-off" if best else ""])
    return f'<tr class="{"active" if best else ""}"><th scope="row">{run}</th>{cells}</tr>'


def _amount(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else format_score(value)
