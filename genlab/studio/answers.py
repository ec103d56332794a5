"""What the endpoints for programs share: refusals in words, waiting for a job, files as Gradio sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from genlab.core.errors import GenlabError
from genlab.studio.store import Job
from genlab.studio.watching import watch
from genlab.studio.workbench import Workbench


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block, GenlabErrors reach the caller as Gradio's, without a traceback."""
    try:
        yield
    except GenlabError as error:
        raise gr.Error(str(error), print_exception=False) from error


def changes(settings: Any) -> dict[str, Any]:
    """The settings that a program changes; None changes nothing. Raises GenlabError for what is no mapping."""
    if not isinstance(settings, dict | None):
        raise GenlabError("settings: a mapping of names to values is wanted")
    return settings or {}


async def finished(bench: Workbench, job: Job) -> dict[str, Any]:
    """The result of a job, once it is done. Raises gr.Error, in the job's own words, if it fails or is stopped."""
    bench.workers.ensure()
    async for news in watch(bench.store, job):
        state = news.state
    if state.status != "done":
        raise gr.Error(state.words or state.status, print_exception=False)
    return state.result


def file(path: Path) -> dict[str, Any]:
    """A file as an endpoint gives it: gradio_client downloads it."""
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
