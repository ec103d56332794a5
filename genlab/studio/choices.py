"""What pages offer to choose from: words for the visitor, values for us."""

from __future__ import annotations

from typing import TypeAlias

from genlab.studio.catalog import Entry, Scan

Choices: TypeAlias = list[tuple[str, str | int | float]]


def of_runs(scan: Scan) -> Choices:
    """The generators by id, with their folders where two bear the same name."""
    entries = sorted(scan.entries.values(), key=lambda entry: (entry.name, entry.source))
    names = [entry.name for entry in entries]
    return [(e.name if names.count(e.name) == 1 else f"{e.name} ({e.source})", e.id) for e in entries]


def of_classes(entry: Entry) -> Choices:
    """The classes of a generator by number, "no class" last where it has that."""
    labels = list(range(entry.num_classes))
    found: Choices = [(_numbered(entry, label), label) for label in labels]
    return found if entry.null_label is None else [*found, ("no class", entry.null_label)]


def _numbered(entry: Entry, label: int) -> str:
    name = entry.class_name(label)
    return name if name == str(label) else f"{label} · {name[:60]}"
