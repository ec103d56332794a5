"""The worker: a process that does the jobs of a store on one device, one after another.

`python -m genlab.studio.worker ROOT DEVICE`. It outlives the page that started it, finishes what waits, and ends once
nothing waits and no page is open.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.store import Job, State, Store

_NAP = 0.02  # seconds between looks at the queue
_LINGER = 30.0  # seconds for which an idle worker waits for a page to come back


class Stopped(Exception):
    """Somebody stopped the job."""


class Running:
    """A job on its way, as the work itself sees it."""

    def __init__(self, store: Store, job: Job):
        self.job, self._store, self._begun = job, store, time.time()

    def check(self) -> None:
        """Raises Stopped if the job shall end; to be called often."""
        if self._store.stopping(self.job):
            raise Stopped

    def show(self, done: float, words: str = "", **content: Any) -> None:
        """News for the page: the share of the work that is done, words, and what is JSON-able.

        The time that is left is estimated from `done`, if that is above 0.
        """
        left = (time.time() - self._begun) * (1 / done - 1) if done > 0 else None
        self._store.show(self.job, {"done": done, "left": left, "words": words, **content})


def serve(root: Path, device: str, linger: float = _LINGER) -> None:
    """Do jobs until none waits and no page has been open for `linger` seconds. At once if the device has a worker."""
    with _locked(_lock_file(root, device), tries=20) as alone:  # others may be looking at it
        if not alone:
            return
        _lock_file(root, device).write_text(str(os.getpid()))
        from genlab.studio.work.workshop import Workshop  # torch, only for a worker that stays

        store, workshop = Store(root), Workshop(device)
        for left in store.abandoned(device):
            words = "The worker ended in the middle of this, killed or out of memory. Ask again, perhaps for less."
            store.finish(left, State("failed", words, ended=time.time()))
        busy = time.monotonic()
        while time.monotonic() - busy < linger or _is_held(root / "page.lock"):
            job = store.claim(device)
            if job is None:
                time.sleep(_NAP)
                continue
            perform(store, job, workshop)
            busy = time.monotonic()


def perform(store: Store, job: Job, workshop: Any) -> None:
    """Do one job and say how it ended, whatever happens."""
    begun = store.state(job).begun
    try:
        result = workshop.do(Running(store, job))
        state = State("done", begun=begun, result=result)
    except Stopped:
        state = State("stopped", begun=begun)
    except GenlabError as error:
        state = State("failed", str(error), begun)
    except Exception as error:
        traceback.print_exc()
        where = store.root / "worker.log"
        state = State(
            "failed", f"This went wrong inside genlab ({type(error).__name__}); {where} has the details", begun
        )
    store.finish(job, State(**{**vars(state), "ended": time.time()}))


@dataclass
class Workers:
    """The page's side: see that each device has a worker."""

    root: Path
    devices: tuple[str, ...]
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ensure(self) -> None:
        """Start the workers that do not run."""
        self._started = [process for process in self._started if process.poll() is None]
        for device in self.devices:
            if not _is_held(_lock_file(self.root, device)):
                self._start(device)

    def _start(self, device: str) -> None:
        words = [sys.executable, "-m", "genlab.studio.worker", str(self.root), device]
        with (self.root / "worker.log").open("ab") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._started.append(subprocess.Popen(words, start_new_session=True, **pipes))


@contextmanager
def page_open(root: Path) -> Iterator[None]:
    """While the block runs, workers know that a page is open. Several pages may be."""
    with (root / "page.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _lock_file(root: Path, device: str) -> Path:
    """Held by the device's worker, whose process number it has."""
    return root / f"worker-{device.replace(':', '-')}.lock"


@contextmanager
def _locked(file: Path, tries: int = 1) -> Iterator[bool]:
    """Whether the lock on the file could be had for the block."""
    with file.open("a") as opened:
        for _ in range(tries):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                yield True
                return
        yield False


def _is_held(file: Path) -> bool:
    """Whether a process holds a lock on the file."""
    if not file.exists():
        return False
    with _locked(file) as free:
        return not free


if __name__ == "__main__":
    from genlab.studio import worker  # this file again, by the name that the work knows: one `Stopped`, not two

    worker.serve(Path(sys.argv[1]), sys.argv[2])
