"""A gallery for images that are still forming."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.gallery import GalleryData, GalleryImage
from gradio.data_classes import ImageData


def _postprocess(self: gr.Gallery, value: Sequence[tuple[str | Path, str]] | None) -> GalleryData:
    """Pairs of (file or data URI, caption) -> what the page gets."""
    return GalleryData(root=[GalleryImage(image=_image(picture), caption=caption) for picture, caption in value or ()])


def _image(picture: str | Path) -> ImageData:
    if isinstance(picture, Path):
        return ImageData(path=str(picture), orig_name=picture.name, mime_type="image/png")
    return ImageData(url=picture)


# Gradio's gallery, which also takes data URIs: previews come many times a second and shall leave no files. A class
# statement would call Gradio's metaclass, which writes a .pyi file into this package; ABCMeta makes the same class.
_body = {"__module__": __name__, "postprocess": _postprocess, "is_template": True}  # shown as its parent
LiveGallery: Any = ABCMeta.__new__(type(gr.Gallery), "LiveGallery", (gr.Gallery,), _body)
