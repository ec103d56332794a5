"""Inputs that several panels have."""

from __future__ import annotations

from typing import Any

import gradio as gr


def class_picker() -> gr.Dropdown:
    """Some classes, by name or number; which there are is said once a generator is chosen."""
    return gr.Dropdown(
        [], label="Classes", info="Type to search by name or number.", multiselect=True, allow_custom_value=True
    )


def whole_number(label: str, low: int, high: int, value: int | None = None, **more: Any) -> gr.Number:
    """A whole number from `low` to `high`; `more` are arguments of gr.Number."""
    return gr.Number(value, label=label, precision=0, minimum=low, maximum=high, step=1, **{"min_width": 120, **more})
