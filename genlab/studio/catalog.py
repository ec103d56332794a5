"""Generators and tokenizers below the given folders, named to pages by an id, never by a path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from genlab.config import validate_parts
from genlab.core.contracts import EditKind, SamplingSettings
from genlab.core.errors import CheckpointError, ConfigError, GenlabError
from genlab.pretrained import DESCRIPTION, locate
from genlab.studio.remembered import Remembered
from genlab.studio.tokenizer_entries import TokenizerEntry, read_tokenizer
from genlab.tokenization.storage import holds_tokenizer
from genlab.training import checkpoint

_LARGEST = 16 * 2**20  # bytes of a description; ImageNet's has 50 thousand


@dataclass(frozen=True)
class Entry:
    """One generator, as its description tells it; nothing of its weights has been read."""

    id: str
    """What pages call it."""
    source: str
    """What `genlab sample` takes."""
    run: Path
    """The run or the export."""
    folder: Path
    """Where its description lies: `run` or its export."""
    name: str
    data: str
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    images: int
    """Images it was trained on."""
    sampling: SamplingSettings
    """Its default settings, of its process's class."""
    null_label: int | None
    """The label for "no class", if that is something to choose."""
    edits: frozenset[EditKind] = frozenset()
    """What it can change of a given image."""
    tokenizer_places: tuple[Path, ...] = ()
    """Where its trained tokenizer may lie; nowhere if it works on pixels."""

    @property
    def tokenizer(self) -> Path | None:
        """The folder of its trained tokenizer, if it is here."""
        return next((place for place in self.tokenizer_places if place.is_dir()), None)

    def class_name(self, label: int) -> str:
        """The words for a label."""
        if label == self.null_label:
            return "no class"
        return self.class_names[label] if label < len(self.class_names) else str(label)


@dataclass(frozen=True)
class Scan:
    """What a look at the folders found."""

    entries: dict[str, Entry] = field(default_factory=dict)
    tokenizers: dict[str, TokenizerEntry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


class Catalog:
    """The generators below some folders, or named by a hub id.

    Args:
        sources: run folders, exports, folders of them, or hub ids, which are downloaded at once.
    """

    def __init__(self, sources: Sequence[str | Path]):
        self._notes: list[str] = []
        self.sources = [str(source) for source in sources]
        self._roots = [(source, root) for source in self.sources if (root := self._root(source)) is not None]
        self._scan = Scan()
        self._remembered = Remembered()
        self._looking = Lock()  # pages open in threads of their own

    @property
    def folders(self) -> list[Path]:
        """The sources on this disk."""
        return [root for _, root in self._roots]

    def _root(self, source: str) -> Path | None:
        path = Path(source)
        if path.exists() or path.is_absolute() or source.count("/") != 1:
            return path
        try:
            return locate(source)
        except GenlabError as error:
            self._notes.append(str(error))
            return None

    def refresh(self) -> Scan:
        """Look again. What has not changed is not read again."""
        with self._looking:
            self._scan = self._look()
            self._remembered.forget()
            return self._scan

    def _look(self) -> Scan:
        entries, tokenizers, notes = {}, {}, list(self._notes)
        for source, folder in self._candidates(notes):
            try:
                if self._holds_tokenizer(folder):
                    tokenizer = self._remembered.read(folder, read_tokenizer, folder)
                    tokenizers[tokenizer.id] = tokenizer
                else:
                    entry = self._remembered.read(folder, read_entry, source, folder)
                    entries[entry.id] = entry
            except GenlabError as error:
                notes.append(str(error))
        tokenizers |= self._own_tokenizers(entries.values(), tokenizers.values(), notes)
        return Scan(entries, tokenizers, tuple(notes))

    def get(self, run: object) -> Entry:
        """The generator that pages call `run`. Raises GenlabError for anything that no scan has found."""
        entry = self._scan.entries.get(run) if isinstance(run, str) else None
        if entry is None:
            raise GenlabError("no such run here: choose one from the list, or refresh it")
        return entry

    def get_tokenizer(self, tokenizer: object) -> TokenizerEntry:
        """The tokenizer that pages call `tokenizer`. Raises GenlabError for anything that no scan has found."""
        entry = self._scan.tokenizers.get(tokenizer) if isinstance(tokenizer, str) else None
        if entry is None:
            raise GenlabError("no such tokenizer here: choose one from the list, or refresh it")
        return entry

    def _candidates(self, notes: list[str]) -> list[tuple[str, Path]]:
        found = []
        for source, root in self._roots:
            if _is_generator(root) or self._holds_tokenizer(root):
                found.append((source, root))
                continue
            if not root.is_dir():
                notes.append(f"{source}: no such folder yet")
                continue
            for child in sorted(root.iterdir()):
                if child.name.startswith(".") or not child.is_dir():
                    continue
                if not child.resolve().is_relative_to(root.resolve()):
                    notes.append(f"{child}: leads out of {source}; name its own folder when starting the studio")
                elif _is_generator(child) or self._holds_tokenizer(child):
                    found.append((str(child), child))
                else:
                    notes.append(f"{child}: neither a run nor an export")
        return found

    def _holds_tokenizer(self, folder: Path) -> bool:
        return self._remembered.read(folder, holds_tokenizer, folder)

    def _own_tokenizers(
        self, generators: Iterable[Entry], known: Iterable[TokenizerEntry], notes: list[str]
    ) -> dict[str, TokenizerEntry]:
        """Those inside generators, each once, unless it lies here by itself."""
        seen = {(entry.spec.fingerprint, entry.spec.image_size) for entry in known}
        found = {}
        for generator in generators:
            folder = generator.tokenizer
            if folder is None:
                continue
            given = folder, f"{generator.name}: tokenizer", generator.image_size
            try:
                entry = self._remembered.read(folder, read_tokenizer, *given)
            except GenlabError as error:
                notes.append(str(error))
                continue
            key = (entry.spec.fingerprint, entry.spec.image_size)
            if key not in seen:
                seen.add(key)
                found[entry.id] = entry
        return found


def _is_generator(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (DESCRIPTION, "config.json", "export/config.json"))


def read_entry(source: str, run: Path) -> Entry:
    """The generator in a run or export. Raises GenlabError, naming the folder, unless genlab can build it."""
    folder = locate(run)
    exported = (folder / "config.json").is_file()
    file = folder / ("config.json" if exported else DESCRIPTION)
    try:
        if file.stat().st_size > _LARGEST:
            raise CheckpointError(f"{file}: too large to be a description")
        raw = json.loads(file.read_text(encoding="utf-8"))
        parts = validate_parts({key: raw[key] for key in ("tokenizer", "network", "process", "sampling")}, str(file))
        classes = int(raw["num_classes"])
        return Entry(
            id=hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16],
            source=source,
            run=run,
            folder=folder,
            name=str(raw["name"]),
            data=str(raw["data"]),
            image_size=int(raw["image_size"]),
            num_classes=classes,
            class_names=tuple(map(str, raw["class_names"])),
            images=int(raw["images"]) if exported else _trained(folder),
            sampling=parts.sampling,
            edits=parts.process.build().edits,
            null_label=classes if classes and getattr(parts.network, "null_row", True) else None,
            tokenizer_places=_tokenizer_places(parts.tokenizer, folder),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        reason = error if isinstance(error, ConfigError) else f"{file}: damaged or not genlab's ({_short(error)})"
        raise CheckpointError(str(reason)) from error


def _tokenizer_places(tokenizer: Any, folder: Path) -> tuple[Path, ...]:
    """Inside an export, or where its description says."""
    path = getattr(tokenizer, "path", None)
    return () if path is None else (folder / path, Path(path))


def _trained(folder: Path) -> int:
    checkpoints = checkpoint.list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise CheckpointError(f"{folder}: has no checkpoint yet; it can be used from its first one on")
    return int(checkpoints[-1].name)


def _short(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:200]
