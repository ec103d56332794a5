"""What somebody asked a generator for, checked: nothing that comes from a page or a client goes further unchecked."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genlab import __version__
from genlab.config_errors import describe, nearest
from genlab.core.contracts import SamplingSettings
from genlab.core.errors import ConfigError, GenlabError
from genlab.sampling import label_plan
from genlab.studio.catalog import Entry, read_entry

LARGEST_SEED = 2**53 - 1  # the largest whole number that a browser holds exactly


@dataclass(frozen=True)
class Limits:
    """The most that one order may ask for."""

    images: int = 256
    steps: int = 1000


@dataclass(frozen=True)
class Order:
    """Images to be made: image i has label `labels[i]` and stream i of `seed`."""

    entry: Entry
    classes: tuple[int, ...]
    per_class: int
    labels: tuple[int, ...]
    seed: int
    settings: SamplingSettings

    @classmethod
    def of(cls, wants: Mapping[str, Any]) -> Order:
        """The order that said `wants`. Raises GenlabError if its generator is no longer there."""
        entry = read_entry(wants["source"], Path(wants["run"]))
        return place(entry, wants["classes"], wants["per_class"], wants["seed"], wants["sampling"], Limits())

    def wants(self) -> dict[str, Any]:
        """The order in plain values, from which `of` makes it again in another process."""
        return {
            "source": self.entry.source,
            "run": str(self.entry.run.resolve()),
            "classes": list(self.classes),
            "per_class": self.per_class,
            "seed": self.seed,
            "sampling": self.settings.model_dump(mode="json"),
        }

    def caption(self, index: int) -> str:
        """The words below image `index`."""
        return self.entry.class_name(self.labels[index])

    def metadata(self, index: int) -> dict[str, Any]:
        """All that is needed to make image `index` and the order that it belongs to again, JSON-able."""
        label = self.labels[index]
        return {
            "genlab": __version__,
            "run": self.entry.name,
            "images": self.entry.images,
            "seed": self.seed,
            "index": index,
            "label": label,
            "class": self.caption(index),
            "classes": list(self.classes),
            "per_class": self.per_class,
            "sampling": self.settings.model_dump(mode="json"),
        }

    def command(self) -> str:
        """The command that makes the same images, or "" where there is none."""
        words = [_class_word(self.entry, label) for label in self.classes]
        if None in words:
            return ""
        default, wanted = (settings.model_dump(mode="json") for settings in (self.entry.sampling, self.settings))
        changed = [f"{key}={_plain(value)}" for key, value in wanted.items() if value != default[key]]
        classes = ["--classes", ",".join(map(str, words))] if words else []
        count = ["--per-class", str(self.per_class), "--seed", str(self.seed)]
        return shlex.join(["genlab", "sample", self.entry.source, *changed, *classes, *count])


def place(entry: Entry, classes: Any, per_class: Any, seed: Any, changes: Mapping[str, Any], limits: Limits) -> Order:
    """The order for `per_class` images of each of `classes` (numbers or names), with `changes` to the default settings.

    Raises:
        GenlabError: anything that is not a sensible value, in words for who asked.
    """
    count = whole(per_class, "images per class", 1, limits.images)
    chosen = _labels(entry, classes)
    if max(len(chosen), 1) * count > limits.images:
        raise GenlabError(f"{len(chosen)} classes with {count} images each: ask for {limits.images} images at most")
    labels = label_plan(entry.num_classes, chosen, count, 0)
    settings = merge(entry.sampling, changes)
    whole(getattr(settings, "steps", 1), "steps", 1, limits.steps)
    return Order(entry, tuple(chosen), count, tuple(labels), whole(seed, "seed", 0, LARGEST_SEED), settings)


def merge(sampling: SamplingSettings, changes: Mapping[str, Any]) -> SamplingSettings:
    """`sampling` with `changes`, validated by its class. Raises GenlabError."""
    try:
        text = json.dumps({**sampling.model_dump(mode="json"), **changes})
        return type(sampling).model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(describe(error, type(sampling), "sampling")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"sampling: a setting is no plain value ({error})") from None


def whole(value: Any, name: str, low: int, high: int) -> int:
    """`value` as an int between `low` and `high`. Raises GenlabError for anything else, also for NaN and 2.5."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise GenlabError(f"{name}: got {str(value)[:40]}, allowed are whole numbers from {low} to {high}")
    return int(value)


def _labels(entry: Entry, classes: Any) -> list[int]:
    """Distinct labels in the order given, "no class" last; none for an unconditional generator."""
    if entry.num_classes == 0:
        return []
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        raise GenlabError("choose at least one class")
    if len(classes) > entry.num_classes + 1:
        raise GenlabError(f"{len(classes)} classes: this generator has {entry.num_classes}")
    labels = list(dict.fromkeys(_label(entry, wanted) for wanted in classes))
    return sorted(labels, key=lambda label: label == entry.null_label)


def _label(entry: Entry, wanted: Any) -> int:
    """An int is a number; words are a name or, as for `genlab sample`, else a number."""
    if isinstance(wanted, str):
        if wanted in entry.class_names:
            return entry.class_names.index(wanted)
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 10):
            raise GenlabError(f"class {wanted[:60]!r}: unknown{nearest(wanted[:60], entry.class_names)}")
        wanted = int(wanted)
    last = entry.num_classes - (entry.null_label is None)
    return whole(wanted, "class", 0, last)


def _plain(value: Any) -> str:
    """A setting as YAML reads it; words go without quotes."""
    bare = isinstance(value, str) and re.fullmatch(r"(?!true$|false$|null$)[a-z][a-z0-9_-]*", value)
    return str(value) if bare else json.dumps(value)


def _class_word(entry: Entry, label: int) -> str | None:
    """What `genlab sample --classes` takes for a label: its number, unless another class bears that for a name."""
    if label == entry.null_label:
        return None if "none" in entry.class_names else "none"
    number = str(label)
    if number not in entry.class_names or entry.class_names.index(number) == label:
        return number
    name = entry.class_names[label]
    return name if entry.class_names.index(name) == label and name == name.strip() and "," not in name else None
