"""The Compare panel's pieces of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genlab.studio.compare_orders import ADJUSTABLE, Comparison, adjustable
from genlab.studio.orders import Order

_COSTS = ("Parameters", "NFE", "Time per image")


def heading(words: str) -> str:
    """The title of a column."""
    return f'<h2 class="part column-title" title="{escape(words)}">{escape(words)}</h2>'


def table(comparison: Comparison, columns: Sequence[Mapping[str, Any]]) -> str:
    """What each order is and costs, as far as it is known: always as many rows as orders."""
    first = comparison.orders[0].entry.name if comparison.varied else "Model"
    settings = [name for name in ADJUSTABLE if name != comparison.varied]
    heads = [escape(first), *(name.capitalize() for name in settings), *_COSTS]
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    rows = "".join(
        _row(comparison.heading(number), order, settings, columns[number] if number < len(columns) else {})
        for number, order in enumerate(comparison.orders)
    )
    hint = "NFE: evaluations of the network for one image; guidance takes two at a time."
    return (
        f'<div class="runs compared-table"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="hint">{hint}</p>'
    )


def _row(title: str, order: Order, settings: Sequence[str], column: Mapping[str, Any]) -> str:
    own = adjustable(order.entry)
    cells = [_plain(getattr(order.settings, name)) if name in own else "–" for name in settings]
    if "seconds" in column:
        cells += [_large(column["parameters"]), _plain(round(column["evaluations"], 1)), moment(column["seconds"])]
    else:
        cells += ["…"] * len(_COSTS)
    head = f'<th scope="row">{escape(title)}</th>'
    return f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _plain(value: float | None) -> str:
    return "automatic" if value is None else f"{value:g}"


def _large(count: int) -> str:
    """12_345_678 -> "12.3 M"."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def moment(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
