"""Millions of strings in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class PackedStrings:
    """A fixed list of strings that costs its bytes and 8 more each.

    A list of a million Python strings would take 100 MB, and again in every data worker, since counting references
    writes to the pages that forked processes share.
    """

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(string) for string in strings]  # keeps file names that are not UTF-8
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def tobytes(self) -> bytes:
        """All strings and where each ends."""
        return self._bytes.tobytes() + self._ends.tobytes()
