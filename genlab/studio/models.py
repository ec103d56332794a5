"""The models in a worker's memory: few at a time."""

from __future__ import annotations

from collections import OrderedDict

import torch

from genlab.core.generator import Generator
from genlab.pretrained import from_pretrained
from genlab.studio.catalog import Entry


class Models:
    """The generators on one device, of which the last used `keep` stay loaded."""

    def __init__(self, device: torch.device, keep: int = 2):
        self.device, self._keep = device, keep
        self._loaded: OrderedDict[tuple[str, int], Generator] = OrderedDict()

    def get(self, entry: Entry) -> Generator:
        """The generator of `entry`. Raises GenlabError if it cannot be loaded."""
        key = (entry.id, entry.images)  # a run that went on is another generator
        if key not in self._loaded:
            self._make_room(entry)
            self._loaded[key] = from_pretrained(entry.folder, self.device)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def clear(self) -> None:
        """Free all memory, for work that needs the device to itself."""
        self._loaded.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_room(self, entry: Entry) -> None:
        for key in [key for key in self._loaded if key[0] == entry.id]:
            del self._loaded[key]
        while len(self._loaded) >= self._keep:
            self._loaded.popitem(last=False)
