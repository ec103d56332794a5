"""The models in memory: one copy for all visitors, few at a time, and one job at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from genlab.core.generator import Generator
from genlab.pretrained import from_pretrained
from genlab.studio.catalog import Entry


class Models:
    """The generators on one device, of which the last used `keep` stay loaded."""

    def __init__(self, device: torch.device | None = None, keep: int = 2):
        self.device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._keep = keep
        self._loaded: OrderedDict[tuple[str, int], Generator] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def borrowed(self, entry: Entry) -> Iterator[Generator]:
        """The generator of `entry`, for nobody else's use meanwhile. Raises GenlabError if it cannot be loaded."""
        with self._lock:
            key = (entry.id, entry.images)  # a run that went on is another generator
            if key not in self._loaded:
                self._make_room(entry)
                self._loaded[key] = from_pretrained(entry.folder, self.device)
            self._loaded.move_to_end(key)
            yield self._loaded[key]

    def _make_room(self, entry: Entry) -> None:
        for key in [key for key in self._loaded if key[0] == entry.id]:
            del self._loaded[key]
        while len(self._loaded) >= self._keep:
            self._loaded.popitem(last=False)
