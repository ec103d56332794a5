"""Gradio components for the fields of a settings class."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import gradio as gr
from gradio.components import Component

from genlab.core.contracts import SamplingSettings
from genlab.studio.fields import Field, fields_of

_FIRST = 4  # settings that are always in sight; a class names what matters most first


class Controls:
    """The controls of one settings class, in a group that is shown while a generator of that class is chosen."""

    def __init__(self, settings: type[SamplingSettings]):
        self.settings = settings
        self._fields = fields_of(settings)
        self._parts: dict[str, list[Component]] = {}
        defaults = settings().model_dump(mode="json")
        with gr.Column(visible=False, elem_classes="controls") as self.group:
            with gr.Row(elem_classes="fields"):
                self._build(self._fields[:_FIRST], defaults)
            if self._fields[_FIRST:]:
                with gr.Accordion("More settings", open=False), gr.Row(elem_classes="fields"):
                    self._build(self._fields[_FIRST:], defaults)

    def _build(self, fields: list[Field], defaults: Mapping[str, Any]) -> None:
        for field in fields:
            with gr.Row() if field.kind == "pair" else nullcontext():
                self._parts[field.name] = _components(field, defaults[field.name])

    @property
    def components(self) -> list[Component]:
        """All of them, in a fixed order."""
        return [part for parts in self._parts.values() for part in parts]

    def read(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """What the controls say, as settings to be validated. An empty one says nothing."""
        changes: dict[str, Any] = {}
        for field in self._fields:
            given = [values[part] for part in self._parts[field.name]]
            if field.kind == "pair":
                if None not in given:
                    changes[field.name] = given
            elif given[0] is not None or field.optional:
                changes[field.name] = given[0]
        return changes

    def show(self, settings: SamplingSettings, idle: frozenset[str], chosen: bool) -> dict[Any, Any]:
        """Updates that set the controls to `settings`, and show them if the generator is `chosen`."""
        updates: dict[Any, Any] = {self.group: gr.update(visible=chosen)}
        values = settings.model_dump(mode="json")
        for name, parts in self._parts.items():
            shown = values[name] if len(parts) > 1 else [values[name]]
            updates |= {part: gr.update(value=value, visible=name not in idle) for part, value in zip(parts, shown)}
        return updates

    def hide(self, idle: frozenset[str]) -> dict[Any, Any]:
        """Updates that show the controls with an effect and hide the others; values stay."""
        return {part: gr.update(visible=name not in idle) for name, parts in self._parts.items() for part in parts}


def _components(field: Field, default: Any) -> list[Component]:
    shared: dict[str, Any] = {"label": field.label, "info": field.info, "interactive": True, "min_width": 180}
    match field.kind:
        case "choice":
            return [gr.Dropdown(list(field.choices), value=default, filterable=False, **shared)]
        case "switch":
            return [gr.Checkbox(value=bool(default), **shared)]
        case "pair":
            low, high = default
            first, last = ({**shared, "label": f"{field.label}: {end}", "step": 0.05} for end in ("from", "to"))
            return [gr.Number(low, **first), gr.Number(high, **last)]
    bounds: dict[str, Any] = {"minimum": field.low, "maximum": field.high}
    if field.kind == "whole":
        return [gr.Number(default, precision=0, step=1, placeholder="automatic", **bounds, **shared)]
    step = 0.1 if not default or default >= 0.1 else default
    return [gr.Number(default, step=step, placeholder="automatic", **bounds, **shared)]
