"""The page as strangers meet it: what does not fit its controls or endpoints is refused in words."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.blocks import BlockFunction
from gradio.route_utils import FnIndexInferError
from gradio.state_holder import SessionState
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from genlab.studio.uploads import LARGEST_BYTES


class Page(gr.Blocks):
    """Gradio's, which would answer unfitting values with nothing and fill the log with tracebacks."""

    async def preprocess_data(
        self,
        block_fn: BlockFunction,
        inputs: list[Any],
        state: SessionState | None,
        explicit_call: bool = False,
    ) -> list[Any]:
        """The arguments of a handler. Raises gr.Error for values that are too few or that a control cannot hold."""
        try:
            traverse(inputs, _refuse_address, is_file_obj_with_meta)
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # whatever a component makes of nonsense
            words = f"{block_fn.api_name or 'this page'}: the values that were sent do not fit"
            raise gr.Error(words, print_exception=False) from error


def _refuse_address(file: dict[str, Any]) -> dict[str, Any]:
    """Gradio would fetch it from this computer, of any size."""
    if is_http_url_like(file["path"]):
        raise gr.Error("files on other servers are not fetched: send the file itself", print_exception=False)
    return file


class NoForeignFiles:
    """Middleware that keeps Gradio's file route to files: it fetches public addresses for whoever asks."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, route, file = scope.get("path", "").partition("/file=")
        if route and is_http_url_like(file):
            refusal = JSONResponse({"detail": "files on other servers are not fetched"}, status_code=403)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _no_endpoint(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "no such endpoint: /gradio_api/info lists them"}, status_code=404)


ARGUMENTS: dict[str, Any] = {
    "max_file_size": LARGEST_BYTES,
    "app_kwargs": {
        "exception_handlers": {FnIndexInferError: _no_endpoint},
        "middleware": [Middleware(NoForeignFiles)],
    },
}
"""Arguments of `launch`."""
