"""What somebody wants made of an image, checked."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from genlab.core.contracts import EditKind
from genlab.core.errors import GenlabError
from genlab.studio.catalog import Entry, read_entry
from genlab.studio.orders import Limits, Order, place, whole

IMAGE, MASK = "image", "mask"
"""Files that come with an order: the image, and perhaps a mask of its size, white where to make anew."""
CELLS = 64
"""Side of the grid on which a page draws, over the middle square of the image."""
_DRAWN = re.compile(rf"[0-9a-f]{{{CELLS * CELLS // 4}}}")
SMALLEST = 0.1
"""Of an image on its canvas, and the least strength."""
_MOST_PARTS = 255

Box: TypeAlias = tuple[float, float, float, float]
REGIONS: dict[str, Box] = {
    "left half": (0.0, 0.0, 0.5, 1.0),
    "right half": (0.5, 0.0, 1.0, 1.0),
    "upper half": (0.0, 0.0, 1.0, 0.5),
    "lower half": (0.0, 0.5, 1.0, 1.0),
    "middle": (0.25, 0.25, 0.75, 0.75),
}
"""Left, top, right and bottom of parts of an image, as shares of its side."""


@dataclass(frozen=True)
class Edit:
    """Which part is made anew, and how."""

    cells: str = ""
    """Cells that were drawn on, row by row, four a hexadecimal digit; or none."""
    masked: bool = False
    """There is a file MASK."""
    region: str = ""
    """One of REGIONS besides, or none."""
    share: float = 1.0
    """Side of the image as a share of the canvas; below 1 all around it is made anew."""
    left: float = 0.5
    """Where it lies there: 0 at the left, 1 at the right end; `top` likewise."""
    top: float = 0.5
    strength: float | None = None
    """See `genlab.editing.edit`; also `from_scale`."""
    from_scale: int | None = None

    @property
    def has_mask(self) -> bool:
        """Only a part is made anew."""
        return bool(self.cells or self.masked or self.region or self.share < 1)


@dataclass(frozen=True)
class EditOrder(Order):
    """Images to be made of one that is given."""

    edit: Edit
    digests: dict[str, str] = field(default_factory=dict)
    """Of image and mask as they are used, once they are known."""

    @classmethod
    def of(cls, wants: Mapping[str, Any]) -> EditOrder:
        """The order that said `wants`. Raises GenlabError if its generator is no longer there."""
        entry = read_entry(wants["source"], Path(wants["run"]))
        given = wants["classes"], wants["per_class"], wants["seed"], wants["sampling"]
        return place_edit(entry, *given, wants["edit"], Limits())

    def wants(self) -> dict[str, Any]:
        return {**super().wants(), "edit": asdict(self.edit)}

    def metadata(self, index: int) -> dict[str, Any]:
        how = {"strength": self.edit.strength, "from_scale": self.edit.from_scale}
        return {**super().metadata(index), "edit": {**self.digests, **how}}

    def command(self) -> str:
        """As Order's, for the files in the archive."""
        made = super().command()
        if not made:
            return ""
        edit = self.edit
        options = {
            "--edit": "image.png",
            "--mask": "mask.png" if edit.has_mask else None,
            "--strength": edit.strength,
            "--from-scale": edit.from_scale,
        }
        words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        return f"{made} {shlex.join(words)}"


def place_edit(
    entry: Entry,
    classes: Any,
    per_class: Any,
    seed: Any,
    changes: Mapping[str, Any],
    edit: Mapping[str, Any],
    limits: Limits,
) -> EditOrder:
    """The order for `per_class` edits to each of `classes`, with `changes` to the default settings.

    Args:
        edit: fields of Edit; what is left out has its default.

    Raises:
        GenlabError: anything that is not a sensible value, in words for who asked.
    """
    order = place(entry, classes, per_class, seed, changes, limits)
    return EditOrder(**vars(order), edit=_edit(entry, edit))


def _edit(entry: Entry, given: Mapping[str, Any]) -> Edit:
    edit = Edit(**given)
    if not entry.edits:
        raise GenlabError(f"{entry.name} cannot change images; choose another run")
    if edit.cells and not (isinstance(edit.cells, str) and _DRAWN.fullmatch(edit.cells)):
        raise GenlabError("what was drawn is damaged: clear it and draw again")
    if edit.region != "" and not (isinstance(edit.region, str) and edit.region in REGIONS):
        raise GenlabError(f"region: got {str(edit.region)[:40]!r}, allowed are {', '.join(REGIONS)}")
    number(edit.share, "size on the canvas", SMALLEST, 1.0)
    number(edit.left, "left", 0.0, 1.0)
    number(edit.top, "top", 0.0, 1.0)
    if edit.strength is not None:
        _needs(entry, "strength", "does not begin from a noised image: leave the strength out")
        number(edit.strength, "strength", SMALLEST / 2, 1.0)
    if edit.from_scale is not None:
        _needs(entry, "parts", "has no scales: leave them out")
        whole(edit.from_scale, "scale", 0, _MOST_PARTS)
    if edit.has_mask:
        _needs(entry, "mask", "takes no mask")
    elif edit.strength is None and edit.from_scale is None:
        raise GenlabError("nothing says what to make anew: draw on the image, or choose a region")
    return edit


def number(value: Any, name: str, low: float, high: float) -> float:
    """`value` as a float between `low` and `high`. Raises GenlabError for anything else, also for NaN."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not low <= value <= high:
        raise GenlabError(f"{name}: got {json.dumps(str(value)[:40])}, allowed are numbers from {low:g} to {high:g}")
    return float(value)


def _needs(entry: Entry, kind: EditKind, words: str) -> None:
    if kind not in entry.edits:
        raise GenlabError(f"{entry.name} {words}")
