"""`python -m genlab.studio.work.leash PIPE SIGNAL MODULE WORDS`: `python -m MODULE WORDS`, ending with its parent."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

_PATIENCE = 120.0  # seconds to save what it has


def hold(pipe: int, number: int) -> None:
    """Once the other end of `pipe` is closed, as a killed parent's is, signal `number` goes to this process's group.

    Whoever is still there after two minutes is killed. Nothing is ever written to the pipe.
    """
    Thread(target=_wait, args=(pipe, number), daemon=True).start()


def _wait(pipe: int, number: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, number)
    time.sleep(_PATIENCE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    pipe, number, module, *words = sys.argv[1:]
    hold(int(pipe), int(number))
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
