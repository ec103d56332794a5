"""Validation errors in words: which key, what was got, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def describe(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """The first two errors of a validation, each on a line of its own."""
    errors = [_line(item, root) for item in error.errors(include_url=False)]
    shown = list(dict.fromkeys(errors))[:2]
    rest = len(errors) - len(shown)
    return f"{where}: " + f"\n{where}: ".join(shown) + (f" (and {rest} more)" if rest > 0 else "")


def _line(item: Any, root: type[BaseModel]) -> str:
    names, owner = _walk(item["loc"], root)
    key = ".".join(names)
    kind, context, got = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        known = sorted(owner.model_fields) if owner else []
        return f"{key}: unknown key{nearest(names[-1], known)} (allowed: {', '.join(known)})"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        return f"{key}.name: got {context['tag']!r}{nearest(context['tag'], known)} (allowed: {', '.join(known)})"
    if kind == "union_tag_not_found":
        return f"{key}: needs a `name:`"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind in ("untrusted", "no_class", "mismatch", "value_error") or kind.startswith("genlab"):
        return f"{key}: {message}" if key else message
    suggestion = ""
    if kind == "literal_error" and isinstance(got, str):
        suggestion = nearest(
            got, [word.strip().strip("'") for word in context["expected"].replace(" or ", ",").split(",")]
        )
    return f"{key}: got {_short(got)}{suggestion} (allowed: {message})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(location: tuple[Any, ...], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """The key path without the union tags that pydantic puts in, and the class that owns the last key."""
    names: list[str] = []
    candidates: list[type[BaseModel]] = [root]
    owner: type[BaseModel] | None = root
    for part in location:
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged and len(candidates) > 1:
            candidates, owner = tagged, tagged[0]
            continue
        names.append(str(part))
        owner = candidates[0] if len(candidates) == 1 else owner
        field = owner.model_fields.get(str(part)) if owner and candidates else None
        candidates = _models(field.annotation) if field else []
        if len(candidates) == 1 and part is not location[-1]:
            owner = candidates[0]
    return names or [""], owner


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]
