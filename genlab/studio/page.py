"""The page as strangers meet it: what does not fit its controls or endpoints is refused in words."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.blocks import BlockFunction
from gradio.route_utils import FnIndexInferError
from gradio.state_holder import SessionState


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
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # whatever a component makes of nonsense
            words = f"{block_fn.api_name or 'this page'}: the values that were sent do not fit"
            raise gr.Error(words, print_exception=False) from error


async def _no_endpoint(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "no such endpoint: /gradio_api/info lists them"}, status_code=404)


REFUSALS: dict[str, Any] = {"exception_handlers": {FnIndexInferError: _no_endpoint}}
"""Arguments of the FastAPI application: the answer to endpoints that do not exist."""
