"""Hugging Face data sets: by name on the hub, saved with `save_to_disk`, local folders of images, parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from genlab.core.errors import DataError
from genlab.data.class_names import read_class_names
from genlab.data.decode import Unreadable
from genlab.data.encoded import EncodedImages, EncodedSettings, Items
from genlab.data.source import ImageSource, ImageStream, Split
from genlab.data.table_stream import StreamedTable, TableStream, encoded_image

_LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "fine_label")
"""Columns taken for labels where none is declared to be."""


class HuggingFace(EncodedSettings):
    """A data set in the sense of the `datasets` library."""

    name: Literal["huggingface"] = "huggingface"
    path: str
    """Hub name (`ylecun/mnist`), or a local folder or parquet file."""
    subset: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = None
    """Default: the only column of images."""
    label_column: str | None = None
    """Default: the column of class labels, or one with a usual name."""
    labelled: bool = True
    """False: ignore labels."""
    streaming: bool = False
    """Read from front to back without downloading first; shuffled within `buffer`."""
    buffer: int = Field(10_000, ge=1)
    """Images held for shuffling when streaming."""

    def build(self, split: Split = "train") -> ImageSource | ImageStream:
        """Raises DataError for data that cannot be had or has no usable columns."""
        part = self.test_split if split == "test" else self.train_split
        table = _load(self, part)
        features = table.features or {}
        image = _image_column(self, features)
        label = _label_column(self, features)
        table = table.select_columns([image] if label is None else [image, label])
        names = _class_names(self, features, label)
        if type(features[image]).__name__ == "Image":
            table = table.cast_column(image, _library().Image(decode=False))  # decoding is ours: EXIF, CMYK, damage
        identity = " ".join(filter(None, (self.path, self.subset, self.revision, part)))
        if self.streaming:
            if label is not None and names is None:
                raise DataError(f"{self.path}: the stream does not tell its classes; set data.class_names")
            streamed = StreamedTable(table, image, label, _promised_length(table, part), self.buffer, identity)
            return TableStream(streamed, names or (), self)
        rows = _Rows(table, image, label, names, identity)
        return EncodedImages(rows, rows.class_names, self)


class _Rows(Items):
    """The rows of a table in memory or memory-mapped."""

    def __init__(self, table: Any, image: str, label: str | None, names: Sequence[str] | None, identity: str):
        self._table, self._image, self._identity = table, image, identity
        if label is None:
            self.class_names: Sequence[str] = ()
            self.labels = np.zeros(len(table), dtype=np.int64)
            return
        column = np.asarray(table.select_columns([label])[:][label])
        if column.dtype.kind in "OU":
            values = column.astype(str)
            self.class_names = tuple(names or sorted(set(values.tolist())))
            known = {name: number for number, name in enumerate(self.class_names)}
            self.labels = np.array([known.get(value, -1) for value in values.tolist()], dtype=np.int64)
        else:
            self.labels = column.astype(np.int64) if column.dtype.kind in "iub" else np.full(len(column), -1)
            self.class_names = tuple(names or map(str, range(int(self.labels.max(initial=-1)) + 1)))
        wrong = (self.labels < 0) | (self.labels >= len(self.class_names))
        if wrong.any():
            raise DataError(
                f"{identity}: {int(wrong.sum())} of {len(wrong)} rows have no known class (column {label!r}, first"
                f" {column[wrong][0]!r}); set data.labelled=false or another data.label_column"
            )

    def read(self, index: int) -> bytes | Path:
        try:
            return encoded_image(self._table[index][self._image])
        except OSError as error:  # a file outside the table that is gone
            raise Unreadable(str(error)) from error

    def name(self, index: int) -> str:
        return f"{self._identity}: row {index}"

    def identity(self) -> bytes:
        return f"{self._identity} {len(self.labels)}".encode()


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.name=huggingface needs: pip install 'genlab[huggingface]'") from error
    return datasets


def _load(settings: HuggingFace, part: str) -> Any:
    """A Dataset or IterableDataset."""
    library = _library()
    local = Path(settings.path)
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            saved = library.load_from_disk(settings.path)
            if isinstance(saved, dict):
                if part not in saved:
                    raise DataError(f"{local}: has no split {part!r}, only {', '.join(saved)}")
                saved = saved[part]
            return saved.to_iterable_dataset() if settings.streaming else saved
        if local.suffix == ".parquet":
            files: dict[str, Any] = {"path": "parquet", "data_files": {part: settings.path}}
        else:
            files = {"path": settings.path, "name": settings.subset, "revision": settings.revision}
        return library.load_dataset(**files, split=part, streaming=settings.streaming)
    except DataError:
        raise
    except Exception as error:  # `datasets` lets through what its many file formats and the network raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{settings.path}: split {part!r} cannot be loaded: {reason}") from error


def _promised_length(table: Any, part: str) -> int | None:
    """Rows of a streamed split by its metadata, if it has any; they let a resume skip whole epochs."""
    info = (table.info.splits or {}).get(part)
    return info.num_examples or None if info else None


def _image_column(settings: HuggingFace, features: dict[str, Any]) -> str:
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    if settings.image_column:
        if settings.image_column not in kinds:
            raise DataError(f"{settings.path}: no column {settings.image_column!r}; there are {', '.join(kinds)}")
        return settings.image_column
    found = [name for name, kind in kinds.items() if kind == "Image"]
    found = found or [name for name, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    if len(found) != 1:
        candidates = ", ".join(found or kinds) or "columns that it does not declare"
        raise DataError(f"{settings.path}: which column holds the images? Set data.image_column to one of {candidates}")
    return found[0]


def _label_column(settings: HuggingFace, features: dict[str, Any]) -> str | None:
    if not settings.labelled:
        return None
    if settings.label_column:
        if settings.label_column not in features:
            raise DataError(f"{settings.path}: no column {settings.label_column!r}; there are {', '.join(features)}")
        return settings.label_column
    declared = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(declared) > 1:
        raise DataError(f"{settings.path}: which label? Set data.label_column to one of {', '.join(declared)}")
    return next((name for name in (*declared, *_LABEL_COLUMNS) if name in features), None)


def _class_names(settings: HuggingFace, features: dict[str, Any], label: str | None) -> tuple[str, ...] | None:
    """The names from the settings' file or the column's declaration; None: neither tells them."""
    if label is None:
        return None
    declared = getattr(features[label], "names", None)
    if settings.class_names:
        return read_class_names(settings.class_names, declared)
    return tuple(declared) if declared else None
