"""Descriptions of runs and tokenizers, read again only when they have changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from genlab.core.errors import GenlabError
from genlab.pretrained import DESCRIPTION
from genlab.tokenization.storage import CONFIG

Found = TypeVar("Found")
_Stamp: TypeAlias = tuple[tuple[int, int] | None, ...]
_TOLD_BY = (CONFIG, DESCRIPTION, f"export/{CONFIG}", "tokenizer.json", "checkpoints")
"""Below a folder, what a description depends on; the folder of checkpoints changes with every new one."""


class Remembered:
    """What readers made of folders, or said against them, with the stamp of the files that they read."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[_Stamp, Any]] = {}
        self._asked: set[tuple[Any, ...]] = set()

    def read(self, folder: Path, reader: Callable[..., Found], *given: Any) -> Found:
        """`reader(*given)`, or what it gave or raised before for the same files in `folder`. Raises GenlabError."""
        key, stamp = (folder, reader, *given), _stamp(folder)
        self._asked.add(key)
        if self._known.get(key, (None,))[0] != stamp:
            self._known[key] = stamp, _outcome(reader, *given)
        found: Any = self._known[key][1]
        if isinstance(found, GenlabError):
            raise found.with_traceback(None)
        return found

    def forget(self) -> None:
        """Let go of what nobody has asked for since the last time."""
        asked, self._asked = self._asked, set()
        self._known = {key: found for key, found in self._known.items() if key in asked}


def _outcome(reader: Callable[..., Any], *given: Any) -> Any:
    try:
        return reader(*given)
    except GenlabError as error:
        return error


def _stamp(folder: Path) -> _Stamp:
    """Time and size of what tells about a folder."""
    return tuple(_touched(folder / part) for part in _TOLD_BY)


def _touched(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
