"""The work of the Train panel: a training process of its own, watched through its log."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from genlab.studio.ledger import read_runs
from genlab.studio.models import Models
from genlab.studio.work.command import run_command
from genlab.studio.worker import Running


def train(running: Running, models: Models) -> dict[str, Any]:
    """Train the recipe at `config` with `overrides` into `runs`: the run's `folder`. Stopping saves a checkpoint."""
    wants = running.job.wants
    folder = Path(wants["runs"]) / wants["name"]
    words = ["train", wants["config"], *wants["overrides"], "--runs", wants["runs"]]
    shown = None

    def look() -> None:
        nonlocal shown
        state = next(iter(read_runs([folder])), None)
        if state is not None and state.total and (state.images, state.speed) != shown:
            shown = (state.images, state.speed)
            loss = "" if state.loss is None else f" · loss {state.loss:.4g}"
            speed = "" if state.speed is None else f" · {state.speed:,.0f} images/s"
            running.show(state.images / state.total, f"{state.images:,} of {state.total:,} images{loss}{speed}")

    run_command(running, models, words, running.job.folder / "training.log", look, gently=signal.SIGTERM)
    return {"folder": str(folder)}
