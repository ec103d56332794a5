"""Small pieces of HTML. Every word that comes from a run is escaped here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genlab.studio.catalog import Entry
from genlab.studio.ledger import RunState
from genlab.studio.store import Job, State

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


def runs(states: Sequence[RunState]) -> str:
    """The list of runs."""
    if not states:
        return '<div class="card empty">No run yet. Start a recipe: digits take a few minutes on any computer.</div>'
    heads = "".join(f"<th>{head}</th>" for head in ("Run", "What", "Images", "Loss", "Images/s", "Memory", "Left"))
    rows = "".join(_run_row(state) for state in states[:200])
    return (
        f'<div class="runs live" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _run_row(state: RunState) -> str:
    share = state.images / state.total if state.total else 0.0
    seen = f'<progress max="1" value="{share:.3f}" aria-label="Trained"></progress> {share:.0%} of {state.total:,}'
    cells = [
        f"<strong>{escape(state.name)}</strong>",
        escape(state.system),
        seen,
        "" if state.loss is None else f"{state.loss:.4g}",
        "" if state.speed is None else f"{state.speed:,.0f}",
        "" if state.memory is None else f"{state.memory:.1f} GiB",
        duration(state.left) if state.left is not None else "finished" if share >= 1 else "stopped",
    ]
    return f'<tr class="{"active" if state.active else ""}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def jobs(found: Sequence[tuple[Job, State, str]]) -> str:
    """A list of jobs, each with some words on how it stands."""
    if not found:
        return '<div class="card hint">Nothing asked for yet.</div>'
    heads = "".join(f"<th>{head}</th>" for head in ("Asked at", "Job", "What", "State", ""))
    rows = []
    for job, state, words in found:
        asked = time.strftime("%d %b %H:%M", time.localtime(int(job.id[:20]) / 1e9))
        cells = (asked, job.kind, f"<strong>{escape(job.title)}</strong>", state.status, escape(words[:300]))
        rows.append(f'<tr class="{state.status}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return f'<div class="runs jobs"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def picture(uri: str, caption: str) -> str:
    """One picture with words below."""
    words = escape(caption)
    return f'<figure class="picture"><img src="{uri}" alt="{words}"><figcaption>{words}</figcaption></figure>'


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
    words = f" · {frame['words']}" if frame["words"] else ""
    return working({**frame, "words": f"{frame['finished']} of {frame['total']} images finished{words}"})


def working(frame: Mapping[str, Any]) -> str:
    """Any job on its way: share, words and the time left."""
    left = f" · {duration(frame['left'])} left" if frame["left"] is not None else ""
    return status(f"{frame['done']:.0%} · {frame['words']}{left}", frame["done"])


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
