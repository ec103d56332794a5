"""The models in a worker's memory: few at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from genlab.core.contracts import Tokenizer
from genlab.core.generator import Generator
from genlab.pretrained import from_pretrained
from genlab.studio.catalog import Entry
from genlab.studio.tokenizer_entries import TokenizerEntry
from genlab.tokenization.storage import load_tokenizer


class Models:
    """The generators and tokenizers on one device, of which the last used `keep` stay loaded."""

    def __init__(self, device: torch.device, keep: int = 2):
        self.device, self._keep = device, keep
        self._loaded: OrderedDict[tuple[str, int | str], Any] = OrderedDict()

    def get(self, entry: Entry) -> Generator:
        """The generator of `entry`. Raises GenlabError if it cannot be loaded."""
        model: Generator = self._get(entry.id, entry.images, lambda: from_pretrained(entry.folder, self.device))
        return model

    def tokenizer(self, entry: TokenizerEntry) -> Tokenizer:
        """The tokenizer of `entry`. Raises GenlabError if it cannot be loaded."""

        def load() -> Tokenizer:
            return load_tokenizer(entry.folder, entry.spec.image_size).to(self.device)

        model: Tokenizer = self._get(entry.id, entry.spec.fingerprint, load)
        return model

    def clear(self) -> None:
        """Free all memory, for work that needs the device to itself."""
        self._loaded.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _get(self, name: str, version: int | str, load: Callable[[], Any]) -> Any:
        key = (name, version)  # a run that went on is another model
        if key not in self._loaded:
            self._make_room(name)
            self._loaded[key] = load()
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _make_room(self, name: str) -> None:
        for key in [key for key in self._loaded if key[0] == name]:
            del self._loaded[key]
        while len(self._loaded) >= self._keep:
            self._loaded.popitem(last=False)
