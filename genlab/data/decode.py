"""Image files of any common kind -> 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""What folders and shards are searched for, in lower case."""


class Unreadable(Exception):
    """An image that cannot be decoded or used; the message is the reason. Sources replace it by another image."""


def decode(data: bytes | Path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The image as 8-bit RGB, upright (EXIF orientation applied), the first frame of an animation.

    Transparency is composited on white, CMYK and palettes are converted, 16-bit grey keeps its upper 8 bits.

    Args:
        formats: names of the only decoders of Pillow's that may see the data; default: all.

    Raises:
        Unreadable: the data is damaged, truncated, empty or of no known kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; what matters is whether pixels come out
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every kind of error on damaged files
        raise Unreadable(_reason(error, data)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception, data: bytes | Path) -> str:
    size = len(data) if isinstance(data, bytes) else (data.stat().st_size if data.is_file() else -1)
    if size == 0:
        return "empty file"
    lines = str(error).splitlines()
    if type(error).__name__ == "UnidentifiedImageError" or not lines:
        return "not an image of a known kind" if lines else type(error).__name__
    return lines[0]
