"""A genlab command in a process of its own, on the worker's device: what it uses is free again at its end.

It ends with the worker, even with one that is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.models import Models
from genlab.studio.work import leash
from genlab.studio.worker import Running, Stopped

_PATIENCE = 120.0  # seconds for a stopped command to save its state
_LOOK = 0.25


def run_command(
    running: Running,
    models: Models,
    words: Sequence[str],
    log: Path,
    look: Callable[[], None],
    gently: signal.Signals,
    environment: Mapping[str, str] | None = None,
) -> None:
    """`genlab WORDS` to its end, all it says into `log`.

    Args:
        look: called a few times a second, to show how it goes.
        gently: the signal upon which the command saves what it has and ends.
        environment: more variables for it.

    Raises:
        Stopped: on request, once the command has ended.
        GenlabError: the command failed; its own words.
    """
    models.clear()  # the command wants the memory
    held, ours = os.pipe()  # closed by the system, if this process is killed
    called = [sys.executable, "-m", leash.__name__, str(held), str(int(gently)), "genlab.cli", *words]
    shared = {**os.environ, **_device(models), **(environment or {})}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the page was started in the background
    with log.open("wb") as output:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        with (
            os.fdopen(ours, "wb"),
            subprocess.Popen(called, start_new_session=True, env=shared, pass_fds=[held], **pipes) as process,
        ):
            os.close(held)
            try:
                while process.poll() is None:
                    running.check()
                    look()
                    time.sleep(_LOOK)
            except Stopped:
                _end(process, gently)
                raise
    if process.returncode:
        raise GenlabError(_complaint(log))


def _end(process: subprocess.Popen[bytes], gently: signal.Signals) -> None:
    """Let it save and end; a process that will not is killed."""
    for number in (gently, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(_PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue


def _device(models: Models) -> dict[str, str]:
    """The worker's device as the only one."""
    return {"CUDA_VISIBLE_DEVICES": str(models.device.index or 0)} if models.device.type == "cuda" else {}


def _complaint(log: Path) -> str:
    """What the command said at its end."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("genlab: ") for line in lines if line.startswith("genlab: ")]
    return (said or lines or ["it ended without a word"])[-1][:1000]
