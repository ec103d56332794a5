"""A streamed Hugging Face data set as an endless, resumable sequence."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.data.decode import Unreadable, decode
from genlab.data.encoded import EncodedSettings
from genlab.data.source import ImageStream, Sample, digest
from genlab.data.transforms import Framing

_JUDGED_AFTER = 1000
"""Images after which the share of damaged ones is taken to be that of the whole."""


class StreamedTable(NamedTuple):
    """An IterableDataset and what must be known of it."""

    rows: Any
    image: str
    label: str | None
    length: int | None
    """Rows per epoch, where the data set tells."""
    buffer: int
    """Rows held for shuffling."""
    identity: str


class TableStream(ImageStream):
    """Rows shuffled by (seed, epoch): the order of the data files, then a buffer.

    Every process reads the whole sequence and decodes its own share.
    """

    def __init__(self, table: StreamedTable, class_names: Sequence[str], settings: EncodedSettings):
        super().__init__(class_names, settings.size)
        self._table = table
        self._settings = settings
        self._numbers = {name: number for number, name in enumerate(class_names)}
        self._lock = threading.Lock()
        self._read = 0
        self._damaged: dict[str, str] = {}

    def samples(self, seed: int, start: int) -> Iterator[Sample]:
        length = self._table.length
        first_epoch, skip = divmod(start, length) if length else (0, start)
        for epoch in count(first_epoch):
            order = int(np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1)[0])
            rows = self._table.rows.shuffle(seed=order, buffer_size=self._table.buffer)
            number = -1
            for number, row in enumerate(rows):
                if number >= skip:
                    yield self._sample(row, f"{self._table.identity}: epoch {epoch}, place {number}")
            found = number + 1
            if found == 0 or (length and found != length):
                raise DataError(
                    f"{self._table.identity}: the stream has {found} rows, {length or 'some'} were promised;"
                    " set data.streaming=false"
                )
            skip = max(0, skip - found)

    def decode(self, sample: Sample, position: int) -> Tensor:
        augmentation = self._settings.draw([position], 1)[0]
        try:
            pixels = self._settings.apply(decode(sample.data), augmentation)  # [R,R,3]
        except Unreadable as error:
            self._count(sample.name, str(error))
            raise
        self._count()
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def fingerprint(self) -> str:
        return digest(self._settings.model_dump_json(include=set(Framing.model_fields)), self._table.identity)

    def unreadable(self) -> dict[str, str]:
        with self._lock:
            return dict(self._damaged)

    def _sample(self, row: dict[str, Any], name: str) -> Sample:
        label = 0 if self._table.label is None else row[self._table.label]
        number = self._numbers.get(label, -1) if isinstance(label, str) else label
        if number is None or not 0 <= number < max(self.num_classes, 1):
            raise DataError(f"{name}: label {label!r} is none of the {self.num_classes} classes")
        return Sample(encoded_image(row[self._table.image]), int(number), name)

    def _count(self, name: str = "", reason: str = "") -> None:
        """Note an image read, or `name` damaged; too many damaged ones are an error."""
        with self._lock:
            self._read += 1
            if reason:
                self._damaged[name] = reason
            allowed = self._settings.max_unreadable
            if len(self._damaged) > allowed * max(self._read, _JUDGED_AFTER):
                first = ", ".join(islice(self._damaged, 3))
                raise DataError(
                    f"{len(self._damaged)} of {self._read} images read are damaged, more than data.max_unreadable="
                    f"{allowed:g} allows; first: {first}"
                )


def encoded_image(cell: Any) -> bytes | Path:
    """The encoded image in a table's cell: bytes, or the `datasets` form {"bytes": ..., "path": ...}."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else b"")
    return cell if isinstance(cell, bytes | Path) else b""
