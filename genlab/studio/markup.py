"""Small pieces of HTML. Every word that comes from a run is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genlab.studio.catalog import Entry

TRAIN = "make demo"
TRAIN_LONG = "accelerate launch genlab/train.py configs/digits/dit_flow.yaml"


def run_card(entry: Entry) -> str:
    """What a generator is."""
    side = entry.image_size
    classes = f"{entry.num_classes:,} classes" if entry.num_classes else "unconditional"
    facts = [f"data {escape(entry.data)}", f"{side} × {side} pixels", classes, f"{entry.images:,} images trained"]
    spans = " ".join(f"<span>{fact}</span>" for fact in facts)
    return f'<div class="card"><strong>{escape(entry.name)}</strong> {spans}</div>'


def no_runs(sources: Sequence[str]) -> str:
    """What to do when there is nothing to show."""
    looked = ", ".join(f"<code>{escape(source)}</code>" for source in sources)
    return (
        f'<div class="card empty"><strong>No trained generator in {looked} yet</strong>'
        "<p>The smallest one learns handwritten digits in a few minutes on any computer. In genlab's folder, type</p>"
        f"<pre>{TRAIN}</pre><p>or, where genlab is installed already,</p><pre>{TRAIN_LONG}</pre>"
        "<p>It can be used from its first checkpoint on: press “Refresh”.</p></div>"
    )


def notes(left_out: Sequence[str]) -> str:
    """What a scan left out, folded."""
    if not left_out:
        return ""
    count = "1 folder was left out" if len(left_out) == 1 else f"{len(left_out)} folders were left out"
    rows = "".join(f"<li>{escape(note)}</li>" for note in left_out[:50])
    return f'<details class="notes"><summary>{count}</summary><ul>{rows}</ul></details>'


def status(words: str, done: float = 0.0) -> str:
    """The progress bar and its words, always of the same height."""
    return (
        f'<div class="status"><progress max="1" value="{done:.3f}" aria-label="Progress"></progress>'
        f'<span role="status">{escape(words)}</span></div>'
    )


def waiting(ahead: int) -> str:
    """A job in the queue."""
    return status("Next in line" if ahead == 0 else "1 job comes first" if ahead == 1 else f"{ahead} jobs come first")


def progress(frame: Mapping[str, Any]) -> str:
    """A job on its way, by its newest frame."""
    left = f" · {duration(frame['left'])} left" if frame["left"] is not None else ""
    return status(f"{frame['done']:.0%} · {frame['finished']} of {frame['total']} images finished{left}", frame["done"])


def finished(count: int, seconds: float) -> str:
    """A job at its end."""
    images = "1 image" if count == 1 else f"{count} images"
    return status(f"{images} in {duration(seconds)}", 1.0)


def duration(seconds: float) -> str:
    """90 -> "1:30 min", 4.23 -> "4.2 s"."""
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d} min"
    return f"{seconds:.1f} s"
