"""What controls a settings class needs, read from its fields: a new process brings its own without a word here."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal

from genlab.config import GeneratorConfig
from genlab.core.contracts import SamplingSettings
from genlab.studio.catalog import Entry

Kind = Literal["choice", "switch", "whole", "number", "pair"]
_KINDS: dict[str, Kind] = {"boolean": "switch", "integer": "whole", "number": "number"}


@dataclass(frozen=True)
class Field:
    """One setting as a page shows it."""

    name: str
    kind: Kind
    info: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    optional: bool = False

    @property
    def label(self) -> str:
        """`guidance_interval` -> "Guidance interval"."""
        return self.name.replace("_", " ").capitalize()


def settings_classes() -> list[type[SamplingSettings]]:
    """The settings class of every process that a config can name."""
    configs = _classes(GeneratorConfig.model_fields["process"].annotation)
    return list(dict.fromkeys(config.Sampling for config in configs))


def fields_of(settings: type[SamplingSettings]) -> list[Field]:
    """The settings that a page can show, in the order of the class; others keep their defaults."""
    properties = settings.model_json_schema()["properties"]
    fields = (_field(name, schema) for name, schema in properties.items())
    return [field for field in fields if field is not None]


def without_effect(entry: Entry, settings: SamplingSettings) -> frozenset[str]:
    """Names of the settings that change nothing under the present values of the others.

    A settings class says so in its method `idle`. Whatever begins with "guidance" needs classes to guide towards.
    """
    idle = frozenset(settings.idle())
    if entry.null_label is None:
        idle |= {name for name in type(settings).model_fields if name.startswith("guidance")}
    return idle


def _classes(annotation: Any) -> list[Any]:
    if isinstance(annotation, type):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _classes(argument)]


def _field(name: str, schema: dict[str, Any]) -> Field | None:
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    if len(options) > 1:
        return None
    shape, optional = options[0], len(options) < len(schema.get("anyOf", []))
    shared: dict[str, Any] = {"name": name, "info": schema.get("description", ""), "optional": optional}
    if "enum" in shape:
        return Field(kind="choice", choices=tuple(shape["enum"]), **shared)
    if shape.get("type") in _KINDS:
        low = shape.get("minimum", shape.get("exclusiveMinimum"))
        high = shape.get("maximum", shape.get("exclusiveMaximum"))
        if shape["type"] == "integer" and "exclusiveMinimum" in shape:
            low += 1
        return Field(kind=_KINDS[shape["type"]], low=low, high=high, **shared)
    if [item.get("type") for item in shape.get("prefixItems", [])] == ["number", "number"]:
        return Field(kind="pair", **shared)
    return None
