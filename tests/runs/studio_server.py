"""The studio as a process of its own, for as long as a test needs it."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from runs_support import LIMIT, ROOT

_ADDRESS = re.compile(r"genlab studio at (http://\S+)")
_TRIES = 3  # somebody else may take the port before the studio does


@contextmanager
def studio(runs: Path, said: list[str] | None = None, *options: str) -> Iterator[str]:
    """`python app.py RUNS OPTIONS`; gives its address once it says so, and stops it as Ctrl-C does.

    Its lines go into `said`, as they come.
    """
    said = [] if said is None else said
    for _ in range(_TRIES):
        words = [sys.executable, "app.py", runs, "--port", str(_free_port()), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(words, cwd=ROOT, start_new_session=True, env=_environment(), **pipes) as process:
            lines: queue.Queue[str] = queue.Queue()
            Thread(target=_read, args=(process, lines, said), daemon=True).start()
            try:
                while line := lines.get(timeout=LIMIT):
                    if found := _ADDRESS.search(line):
                        yield found[1]
                        return
            finally:
                _end(process)
                _end_workers(runs)
        if "cannot listen there" not in "".join(said):
            break
    raise AssertionError(f"the studio did not start:\n{''.join(said)}")


def _environment() -> dict[str, str]:
    """This one, without what would send requests for 127.0.0.1 elsewhere or ask the network for news."""
    return {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "127.0.0.1,localhost"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _read(process: subprocess.Popen[str], lines: queue.Queue[str], said: list[str]) -> None:
    """Its lines as they come, and an empty one at the end."""
    for line in process.stdout or ():
        said.append(line)
        lines.put(line)
    lines.put("")


def _end_workers(runs: Path) -> None:
    """They would go on, and wait for another page."""
    for lock in runs.glob(".studio/worker-*.lock"):
        if lock.read_text():
            with suppress(ProcessLookupError):
                os.kill(int(lock.read_text()), signal.SIGKILL)


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                continue
