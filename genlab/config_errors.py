"""Validation errors in words: which key, what was got, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from genlab.core.contracts import SamplingSettings


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def describe(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """The first two errors of a validation, each on a line of its own."""
    found = [(_walk(item["loc"], root), item) for item in error.errors(include_url=False)]
    # a process at fault does not say which sampling settings there are
    found = [fault for fault in found if fault[0].owner is not SamplingSettings] or found
    errors = [_line([*alternatives]) for _, alternatives in groupby(found, lambda fault: fault[0].value)]
    shown = list(dict.fromkeys(errors))[:2]
    rest = len(errors) - len(shown)
    return f"{where}: " + f"\n{where}: ".join(shown) + (f" (and {rest} more)" if rest > 0 else "")


class _Place(NamedTuple):
    """Where an error is."""

    names: list[str]
    """The key path without the tags and branches of unions that pydantic puts in."""
    owner: type[BaseModel] | None
    """The class that owns the last key."""
    value: tuple[Any, ...]
    """The location of what is at fault; if a value may be of several kinds, its own, whatever a kind complains of."""
    branch: int | None
    """How many of the names lead to such a value."""


def _line(alternatives: list[tuple[_Place, Any]]) -> str:
    """One error, or what each kind that a value may be of finds wrong with it."""
    # a kind that complains of a part only is the one that was meant
    parts = [fault for fault in alternatives if fault[0].branch not in (None, len(fault[0].names))]
    place, item = (parts or alternatives)[0]
    names, key = place.names, ".".join(place.names)
    kind, context, got = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        return _unknown(names, place.owner, got)
    if kind == "missing":
        return f"{key}: missing"
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        return f"{key}.name: got {context['tag']!r}{nearest(context['tag'], known)} (allowed: {', '.join(known)})"
    if kind == "union_tag_not_found":
        return f"{key}: needs a `name:`"
    items = [item] if parts else [item for _, item in alternatives]
    message = " or ".join(dict.fromkeys(map(_allowed, items)))
    if kind in ("untrusted", "no_class", "mismatch", "value_error") or kind.startswith("genlab"):
        return f"{key}: {message}" if key else message
    words = [word for item in items for word in _LITERAL.findall(item.get("ctx", {}).get("expected", ""))]
    suggestion = nearest(got, words) if isinstance(got, str) else ""
    return f"{key}: got {_short(got)}{suggestion} (allowed: {message})"


_LITERAL = re.compile(r"'([^']*)'")


def _allowed(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return _LIST.sub("a list", message)


_LIST = re.compile(r"a valid (?:array|tuple)")


def _unknown(names: list[str], owner: type[BaseModel] | None, got: Any) -> str:
    """A key that its section does not have."""
    key, last = ".".join(names), names[-1]
    known = sorted(owner.model_fields) if owner else []
    if owner is not None and issubclass(owner, SamplingSettings) and known:
        if names == ["sampling"] and isinstance(got, dict):
            setting = _first_leaf(got)
            return f"sampling.{setting}: sampling is all that can be set here: write {setting}"
        if last.startswith("guidance") and "guidance" not in known:
            return (
                f"{key}: this generator has no guidance: a student has learnt its teacher's, a mean flow that of its "
                f"training; leave it out (allowed: {', '.join(known)})"
            )
    return f"{key}: unknown key{nearest(last, known)} (allowed: {', '.join(known)})"


def _first_leaf(tree: dict[str, Any]) -> str:
    """The first `section.key=value` in it."""
    key, value = next(iter(tree.items()), ("key", "value"))
    if isinstance(value, dict):
        return f"{key}.{_first_leaf(value)}"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(location: tuple[Any, ...], root: type[BaseModel]) -> _Place:
    names: list[str] = []
    candidates: list[type[BaseModel]] = [root]
    owner: type[BaseModel] | None = root
    value, branch, plain = location, None, False
    for depth, part in enumerate(location):
        if plain and isinstance(part, str):  # inside a field without sections, words are branches of unions
            value, branch = (location[:depth], len(names)) if branch is None else (value, branch)
            continue
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged and len(candidates) > 1:
            candidates, owner = tagged, tagged[0]
            continue
        names.append(str(part))
        owner = candidates[0] if len(candidates) == 1 else owner
        field = owner.model_fields.get(str(part)) if owner and candidates else None
        candidates = _models(field.annotation) if field else []
        plain = plain or (field is not None and not candidates)
        if len(candidates) == 1 and part is not location[-1]:
            owner = candidates[0]
    return _Place(names or [""], owner, value, branch)


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]
