"""What the page's process remembers of each visitor, kept small: a server that many have visited shall not grow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
from gradio.state_holder import SessionState, StateHolder

BACKLOG = 32
"""Messages that may wait for a page before news of work under way are left out."""
MOST = 256
"""Sessions that are remembered. Whose session is forgotten only has to reload the page: jobs are on disk."""


class Session(SessionState):
    """Gradio's, without the copy of all components and of every value shown that it keeps for deep links.

    The page has no deep links, and the copy takes more than a megabyte a session.
    """

    def __init__(self, page: gr.Blocks):
        super().__init__(cast(gr.Blocks, SimpleNamespace(default_config=page.default_config, blocks={})))

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key: int) -> None:
        return

    def _update_value_in_config(self, key: int, value: Any) -> None:
        return


class Sessions(StateHolder):
    """All sessions of a page; those that were used last stay."""

    def __init__(self, page: gr.Blocks):
        super().__init__()
        self.set_blocks(page)
        self.capacity = MOST

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


def keeps_up(page: gr.Blocks, session_id: str | None) -> bool:
    """Whether a visitor takes what is sent: a slow line or a program that never reads would pile up megabytes."""
    waiting = page._queue.pending_messages_per_session.get(session_id or "")
    return waiting is None or waiting.qsize() < BACKLOG
