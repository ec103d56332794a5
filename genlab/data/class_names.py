"""Readable class names from a file beside the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from genlab.core.errors import DataError


def read_class_names(path: Path, keys: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names in `path`, one per class, duplicates allowed.

    Args:
        path: text with one name a line, or JSON: a list in class order, or an object {key: name}.
        keys: the classes as the data calls them (folder names), in order; None: any number, in the file's order.

    Raises:
        DataError: the file is unreadable or does not fit the classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        content = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as class names ({error})") from error
    if isinstance(content, dict):
        if keys is None:
            raise DataError(f"{path}: an object of names needs classes that have keys; use a list in class order")
        missing = [key for key in keys if key not in content]
        if missing:
            raise DataError(f"{path}: has no name for {len(missing)} of {len(keys)} classes, first {missing[0]!r}")
        content = [content[key] for key in keys]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise DataError(f"{path}: expected a list of names, or an object of folder: name")
    if keys is not None and len(content) != len(keys):
        raise DataError(f"{path}: has {len(content)} names for {len(keys)} classes")
    return tuple(content)
