"""Reports and comparisons in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from genlab.evaluation.metrics import KNOWN
from genlab.evaluation.report import Report, format_score

_ARROW = {"lower": "↓", "higher": "↑", "neither": ""}


def print_report(report: Report, console: Console | None = None) -> None:
    """Banner, scores with intervals, verdicts, warnings and times."""
    console = console or Console(highlight=False)
    for banner in report.banners:
        console.print(f"NOTE: {banner}", style="yellow", markup=False)
    table = Table(
        title=f"{report.title}: {report.samples:,} images, protocol {report.protocol.name}", title_justify="left"
    )
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("circumstances")
    for score in report.scores:
        interval = f"{format_score(score.interval[0])} – {format_score(score.interval[1])}" if score.interval else ""
        value = f"{format_score(score.value)} {_ARROW[KNOWN[score.metric].better]}"
        table.add_row(score.name, value, interval, _circumstances(score.detail))
    console.print(table)
    for check in report.checks:
        console.print(check.text, markup=False, style="red" if check.verdict == "off" else "green")
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")
    console.print("seconds: " + ", ".join(f"{key} {value:.1f}" for key, value in report.seconds.items()), markup=False)


def _circumstances(detail: dict[str, object]) -> str:
    shown = {key: value for key, value in detail.items() if value is not None and not isinstance(value, str | list)}
    words = [f"{key.replace('_', ' ')} {format_score(v) if isinstance(v, float) else v}" for key, v in shown.items()]
    return ", ".join(words[:4])


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """A plain table, first column left, others right."""
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    (console or Console(highlight=False)).print(table)
