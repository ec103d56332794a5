"""Which share of the tokens is masked: named schedules, schedules learned elsewhere and read from a file, and the draws
of training.

Letters: B batch, L positions.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from samplers.noise import SampleRng
from samplers.unmasking import SCHEDULES, Schedule, table

Points: TypeAlias = tuple[tuple[float, float], ...]
ScheduleName: TypeAlias = Literal["cosine", "linear", "arccos", "learned"]


def _read(value: Any) -> Any:
    """Points as given, or those in a file: JSON [[progress, share], ...], or text of two numbers a line."""
    if not isinstance(value, str):
        return value
    try:
        text = Path(value).read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return tuple(tuple(point) for point in json.loads(text))
        rows = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
        return tuple(tuple(float(word) for word in row) for row in rows if row)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{value}: no table of progress and share ({error})") from None


def _checked(points: Points) -> Points:
    if len(points) < 2 or points[0][0] != 0 or points[-1][0] != 1:
        raise ValueError("a schedule's progress goes from 0 to 1, in at least two points")
    for (x, y), (x_after, y_after) in pairwise(points):
        if not x < x_after or not 0 <= y_after <= y <= 1:
            raise ValueError(
                f"after point ({x}, {y}) comes ({x_after}, {y_after}): progress rises, the share falls within 0..1"
            )
    return points


Table = Annotated[
    Points, BeforeValidator(_read, json_schema_input_type=str | list[tuple[float, float]]), AfterValidator(_checked)
]
"""A learned schedule: (progress, masked share) from progress 0 to 1, given or as the name of a file with them. What is
kept is the table, so that a run does not depend on the file."""


def schedule_of(name: str, points: Points | None) -> Schedule:
    """The schedule of that name. Raises ValueError for one to be learned without points, or points without need."""
    if (name == "learned") != (points is not None):
        raise ValueError(f"schedule={name} {'needs a table' if points is None else 'takes no table; use learned'}")
    return SCHEDULES[name] if points is None else table(points)


def beta(rng: SampleRng, a: int, b: int) -> Tensor:
    """[B], Beta(a, b) for whole a and b: the a-th smallest of a + b - 1 uniform numbers."""
    return rng.uniform(a + b - 1).kthvalue(a, dim=1).values


def count_of(ratio: Tensor, length: int) -> Tensor:
    """int64, of any shape: that share of L positions, at least one masked and one visible."""
    return (ratio * length).round().long().clamp(1, length - 1)


def masked_at(uniform: Tensor, count: Tensor) -> Tensor:
    """bool [B,L] with `count` [B] random positions true, by uniform numbers [B,L].

    Their argsort is a random permutation. A larger count masks the same positions and more.
    """
    return uniform.argsort(dim=1) < count.view(-1, 1)
