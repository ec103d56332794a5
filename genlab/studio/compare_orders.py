"""What somebody wants compared, checked: the same images of several models, or of one under several values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.catalog import Entry
from genlab.studio.fields import without_effect
from genlab.studio.orders import Limits, Order, place

ADJUSTABLE = ("steps", "guidance")
"""Settings that most processes have, and by which they may be compared."""
MODELS = 4
VALUES = 8


@dataclass(frozen=True)
class Comparison:
    """Orders that differ in the model, or in one setting alone; image i of each has the same class and seed."""

    orders: tuple[Order, ...]
    varied: str
    """The setting that they differ in; "": the model."""

    @classmethod
    def of(cls, wants: Mapping[str, Any]) -> Comparison:
        """The comparison that said `wants`. Raises GenlabError if one of its generators is no longer there."""
        return cls(tuple(map(Order.of, wants["orders"])), wants["varied"])

    def wants(self) -> dict[str, Any]:
        """The comparison in plain values, from which `of` makes it again in another process."""
        return {"orders": [order.wants() for order in self.orders], "varied": self.varied}

    @property
    def title(self) -> str:
        """What is compared, in a few words."""
        if not self.varied:
            return " · ".join(order.entry.name for order in self.orders)
        return f"{self.orders[0].entry.name} over {self.varied}"

    def heading(self, number: int) -> str:
        """What tells order `number` from the others."""
        order = self.orders[number]
        if not self.varied:
            return order.entry.name
        return f"{self.varied.capitalize()} {getattr(order.settings, self.varied)}"

    def work(self, number: int) -> float:
        """The work of order `number` compared to the others', as far as it is known beforehand."""
        return float(getattr(self.orders[number].settings, self.varied)) if self.varied == "steps" else 1.0


def adjustable(entry: Entry) -> list[str]:
    """Those of `ADJUSTABLE` that have an effect on a generator's samples."""
    idle = without_effect(entry, entry.sampling)
    return [name for name in ADJUSTABLE if name in type(entry.sampling).model_fields and name not in idle]


def compare_models(
    entries: Sequence[Entry], classes: Any, per_class: Any, seed: Any, changes: Mapping[str, Any], limits: Limits
) -> Comparison:
    """The same classes and seed through two to four generators.

    Args:
        classes: numbers or names that mean the same to all.
        changes: to their default settings; each takes those that it has.

    Raises:
        GenlabError: they have no classes in common, or anything that is not a sensible value, in words for who asked.
    """
    if not 2 <= len({entry.id for entry in entries}) == len(entries) <= MODELS:
        raise GenlabError(f"choose two to {MODELS} different models to compare: got {len(entries)}")
    if len({entry.num_classes for entry in entries}) > 1:
        counts = ", ".join(f"{entry.name} has {entry.num_classes or 'no'} classes" for entry in entries)
        raise GenlabError(f"models of the same classes can be compared: {counts}")
    _check(changes)
    orders = [_placed(entry, classes, per_class, seed, changes, limits) for entry in entries]
    for other in orders[1:]:
        _check_names(orders[0], other)
    return _limited(Comparison(tuple(orders), ""), limits)


def compare_values(
    entry: Entry,
    varied: Any,
    values: Any,
    classes: Any,
    per_class: Any,
    seed: Any,
    changes: Mapping[str, Any],
    limits: Limits,
) -> Comparison:
    """The same classes and seed through one generator, for each value of its setting `varied`.

    Args:
        values: numbers; each counts once, small ones come first.
        changes: to the default settings.

    Raises:
        GenlabError: anything that is not a sensible value, in words for who asked.
    """
    possible = adjustable(entry)
    if varied not in possible:
        raise GenlabError(f"{entry.name}: {', '.join(possible) or 'nothing'} can be varied: got {str(varied)[:40]!r}")
    numbers = _numbers(values)
    if not 2 <= len(numbers) <= VALUES:
        raise GenlabError(f"give two to {VALUES} different values of {varied}: got {len(numbers)}")
    _check(changes)
    given = classes, per_class, seed
    orders = [_placed(entry, *given, {**changes, varied: number}, limits) for number in numbers]
    return _limited(Comparison(tuple(orders), varied), limits)


def read_values(text: str | None) -> list[float]:
    """Numbers as people type them, "1, 2 4". Raises GenlabError for anything else."""
    return [read_value("values", word) for word in re.split(r"[,;\s]+", text or "") if word]


def read_value(name: str, word: str) -> float:
    """One number, whole where it is typed so. Raises GenlabError for anything else."""
    try:
        return int(word) if word.strip().isdecimal() else float(word)
    except ValueError:
        raise GenlabError(f"{name}: {word[:40]!r} is no number") from None


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise GenlabError("values: a list of numbers is wanted")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise GenlabError(f"values: {str(value)[:40]!r} is no number")
    return sorted(set(values))


def _check(changes: Mapping[str, Any]) -> None:
    unknown = [name for name in changes if name not in ADJUSTABLE]
    if unknown:
        raise GenlabError(f"settings: {str(unknown[0])[:40]!r} cannot be changed here, only {', '.join(ADJUSTABLE)}")


def _placed(entry: Entry, classes: Any, per_class: Any, seed: Any, changes: Mapping[str, Any], limits: Limits) -> Order:
    own = adjustable(entry)
    taken = {name: value for name, value in changes.items() if name in own}
    try:
        return place(entry, classes, per_class, seed, taken, limits)
    except GenlabError as error:
        raise GenlabError(f"{entry.name}: {error}") from error


def _check_names(one: Order, other: Order) -> None:
    """Raises GenlabError if a class bears other names. One without a name of its own may be any."""
    for mine, theirs in zip(one.labels, other.labels):
        names = one.entry.class_name(mine), other.entry.class_name(theirs)
        if names[0] != names[1] and names[0] != str(mine) and names[1] != str(theirs):
            raise GenlabError(
                f"class {mine} is {names[0][:40]!r} for {one.entry.name}, but {names[1][:40]!r} for {other.entry.name}"
            )


def _limited(comparison: Comparison, limits: Limits) -> Comparison:
    count = sum(len(order.labels) for order in comparison.orders)
    if count > limits.images:
        raise GenlabError(f"that makes {count} images in all: ask for {limits.images} at most")
    return comparison
