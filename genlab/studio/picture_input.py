"""A place to drop an image, whose pixels the page's own process does not decode."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData


def _preprocess(self: gr.Image, payload: ImageData | None) -> str | None:
    """What the page sent -> Gradio's path of the file, for `uploads.receive`; None if there is none."""
    return payload.path if payload is not None else None


# Gradio's image, which would open and convert whatever is sent; made as in `gallery`.
_body = {"__module__": __name__, "preprocess": _preprocess, "is_template": True}
PictureInput: Any = ABCMeta.__new__(type(gr.Image), "PictureInput", (gr.Image,), _body)
