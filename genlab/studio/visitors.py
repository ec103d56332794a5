"""Who asks: what jobs belong to, and by what a page finds them again."""

from __future__ import annotations

import secrets

import gradio as gr

from genlab.studio.store import Store


def visitor_state(store: Store) -> gr.BrowserState:
    """A random name kept by the visitor's browser; `greet` gives one to who has none."""
    return gr.BrowserState("", storage_key="genlab-visitor", secret=store.secret)


def greet(visitor: str | None) -> str:
    """The visitor's name, new if there is none."""
    return visitor or secrets.token_hex(12)


def who(request: gr.Request, visitor: str | None = None) -> str:
    """The owner of what is asked: who logged in, else the browser, else (for programs) the session."""
    return f"user {request.username}" if request.username else visitor or f"session {request.session_hash}"
