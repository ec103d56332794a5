"""`python interrupted.py COUNT SIGNAL PREFIX ENTRY [ARGUMENT]...`: run an entry that sends itself a signal.

It comes right before the COUNTth time that the entry opens, makes, renames or removes a file whose path begins with
PREFIX. So the moment is in the midst of what must not be torn, and it is the same on a slow machine and on a fast one.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def arm(count: int, number: int, prefix: str) -> None:
    """Send signal `number` to this process before its `count`th use of a file."""
    uses = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal uses
        if event in _EVENTS and any(_path(argument).startswith(prefix) for argument in arguments):
            uses += 1
            if uses == count:
                os.kill(os.getpid(), number)

    sys.addaudithook(watch)


def _path(argument: object) -> str:
    return os.fspath(argument) if isinstance(argument, str | Path) else ""


if __name__ == "__main__":
    count, name, prefix, entry = sys.argv[1:5]
    sys.argv = sys.argv[4:]
    sys.path[0] = str(Path(entry).parent)  # as if the entry had been started itself
    arm(int(count), signal.Signals[name], prefix)
    runpy.run_path(entry, run_name="__main__")
