"""Timers tick only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from genlab.studio.panel import QUICK, Updates


def tick_in_sight(page: gr.Blocks, tabs: Sequence[gr.Tab]) -> None:
    """Let the timers of a tab run while it is the selected one; the first is selected when the page opens."""
    timers: dict[gr.Timer, gr.Tab] = {}
    for block in page.blocks.values():
        if isinstance(block, gr.Timer) and (tab := _tab_of(block, tabs)) is not None:
            timers[block] = tab
            block.active = tab is tabs[0]
    for tab in tabs if timers else ():
        tab.select(_turn_to(tab, timers), None, list(timers), **QUICK)


def _turn_to(tab: gr.Tab, timers: dict[gr.Timer, gr.Tab]) -> Callable[[], Updates]:
    return lambda: {timer: gr.Timer(active=own is tab) for timer, own in timers.items()}


def _tab_of(block: Any, tabs: Sequence[gr.Tab]) -> gr.Tab | None:
    while block is not None and block not in tabs:
        block = block.parent
    return block
