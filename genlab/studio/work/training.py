"""The work of the Train panel: a training process of its own, watched through its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.ledger import read_runs
from genlab.studio.models import Models
from genlab.studio.worker import Running, Stopped

_PATIENCE = 120.0  # seconds for a stopped training to save its state
_LOOK = 0.25


def train(running: Running, models: Models) -> dict[str, Any]:
    """Train the recipe at `config` with `overrides` into `runs`: the run's `folder`. Stopping saves a checkpoint."""
    wants = running.job.wants
    folder = Path(wants["runs"]) / wants["name"]
    models.clear()  # the training wants the memory
    words = [sys.executable, "-m", "genlab.cli", "train", wants["config"], *wants["overrides"], "--runs", wants["runs"]]
    log = running.job.folder / "training.log"
    with log.open("wb") as output:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        with subprocess.Popen(words, start_new_session=True, env=_environment(models), **pipes) as process:
            try:
                _watch(running, process, folder)
            except Stopped:
                _end(process)
                raise
    if process.returncode:
        raise GenlabError(_complaint(log))
    return {"folder": str(folder)}


def _watch(running: Running, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Tell how the training goes, until it ends. Raises Stopped."""
    shown = None
    while process.poll() is None:
        running.check()
        state = next(iter(read_runs([folder])), None)
        if state is not None and state.total and (state.images, state.speed) != shown:
            shown = (state.images, state.speed)
            loss = "" if state.loss is None else f" · loss {state.loss:.4g}"
            speed = "" if state.speed is None else f" · {state.speed:,.0f} images/s"
            running.show(state.images / state.total, f"{state.images:,} of {state.total:,} images{loss}{speed}")
        time.sleep(_LOOK)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it save and end; a process that will not is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(_PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue


def _environment(models: Models) -> dict[str, str]:
    """This one, with the worker's device as the only one."""
    chosen = {"CUDA_VISIBLE_DEVICES": str(models.device.index or 0)} if models.device.type == "cuda" else {}
    return {**os.environ, **chosen}


def _complaint(log: Path) -> str:
    """What the training said at its end."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("genlab: ") for line in lines if line.startswith("genlab: ")]
    return (said or lines or ["the training ended without a word"])[-1][:1000]
