"""Who asks: what jobs belong to, and by what a page finds them again."""

from __future__ import annotations

import re
import secrets
from typing import Any

import gradio as gr

from genlab.studio.store import Store

_NAME = re.compile("[0-9a-f]{24}")


def visitor_state(store: Store) -> gr.BrowserState:
    """A random name kept by the visitor's browser; `greet` gives one to who has none."""
    return gr.BrowserState("", storage_key="genlab-visitor", secret=store.secret)


def greet(visitor: Any) -> str:
    """The visitor's name, new if what the browser says is none."""
    return visitor if _is_name(visitor) else secrets.token_hex(12)


def who(request: gr.Request, visitor: Any = None) -> str:
    """The owner of what is asked: who logged in, else the browser, else (for programs) the session."""
    if request.username:
        return f"user {request.username}"
    return f"visitor {visitor}" if _is_name(visitor) else f"session {request.session_hash}"


def _is_name(visitor: Any) -> bool:
    return isinstance(visitor, str) and _NAME.fullmatch(visitor) is not None
