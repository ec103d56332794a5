"""Images as bytes: PNG files that say how they were made, and small ones inside a page."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

KEY = "genlab"  # of the tEXt chunk
_LARGE = 256 * 1024  # bytes of a PNG that a page can do without
_SMALL = 64  # up to this side a PNG is smaller than a JPEG


def to_png(image: Tensor, metadata: dict[str, Any]) -> bytes:
    """uint8 [3,R,R] -> a PNG file with `metadata` as JSON in its text chunk "genlab"."""
    info = PngInfo()
    info.add_text(KEY, json.dumps(metadata))  # ASCII, as tEXt demands
    return _save(image, format="PNG", pnginfo=info)


def to_data_uri(image: Tensor) -> str:
    """uint8 [3,R,R] -> a preview that needs no file: exact where images are small, else a JPEG."""
    small = image.shape[-1] <= _SMALL
    data = _save(image, format="PNG") if small else _save(image, format="JPEG", quality=80)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data).decode('ascii')}"


def file_to_data_uri(file: Path) -> str:
    """A PNG file of genlab's own as part of a page; large ones as JPEG."""
    data = file.read_bytes()
    if len(data) <= _LARGE:
        return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _save(image: Tensor, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, **options)
    return buffer.getvalue()
