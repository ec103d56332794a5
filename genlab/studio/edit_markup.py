"""Small pieces of HTML for the Edit panel."""

from __future__ import annotations

import base64
from urllib.parse import quote


def nothing_to_edit(found: int) -> str:
    """Why the panel is empty."""
    words = "None of the runs here can change images" if found else "No trained generator here yet"
    return (
        f'<div class="card empty"><strong>{words}</strong><p>Diffusion and flow models, EDM, VAR and its kin, xAR, '
        "masked transformers and ResGen can: start one of their recipes in Train.</p></div>"
    )


def source_of(picture: bytes | str | None) -> str:
    """What an image's `src` says: a PNG file of our own, or Gradio's path of an upload."""
    if picture is None:
        return ""
    if isinstance(picture, str):
        return f"gradio_api/file={quote(picture)}"
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
