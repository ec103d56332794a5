"""Images that visitors send: a page looks at their header alone, and what wants the pixels decodes them in a worker."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.core.errors import GenlabError
from genlab.data.decode import Unreadable, decode
from genlab.data.transforms import Framing

LARGEST_BYTES = 16 * 2**20
LARGEST_PIXELS = 20_000_000
FORMATS = ("PNG", "JPEG", "WEBP")  # as Pillow calls them; its other decoders never see an upload
_KINDS = "a PNG, JPEG or WebP image"


class UploadError(GenlabError):
    """What was sent is not taken; the words are for who sent it."""


def receive(sent: object) -> bytes:
    """The bytes of an image that somebody sent, their header checked, nothing decoded.

    Args:
        sent: what a page or a client gives for it: Gradio's path of the file, or the mapping that has this path.

    Raises:
        UploadError: no file of Gradio's uploads, too large, or no image of the kinds that are taken.
    """
    path = sent.get("path") if isinstance(sent, Mapping) else sent
    if not path:
        raise UploadError(f"choose {_KINDS} first")
    data = _read(path)
    check_upload(data)
    return data


def check_upload(data: bytes) -> None:
    """Raises UploadError unless the header is that of an image of a kind and of a size that are taken."""
    if len(data) > LARGEST_BYTES:
        raise UploadError(f"the file is too large: at most {LARGEST_BYTES // 2**20} MB are taken")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many() from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every kind of error on damaged files
        raise UploadError(f"this is not {_KINDS}, or it is damaged") from error
    if width * height > LARGEST_PIXELS:
        raise _too_many(f"{width:,} × {height:,} pixels are too many")


def decode_upload(data: bytes) -> Image.Image:
    """The image as 8-bit RGB, upright (EXIF orientation applied), transparency on white.

    Raises:
        UploadError: as `check_upload`, or the pixels are damaged.
    """
    check_upload(data)
    try:
        return decode(data, FORMATS)
    except Unreadable as error:
        raise UploadError(f"the image is damaged ({error})") from error


def fit(image: Image.Image, size: int) -> Tensor:
    """The centre square of an RGB image at `size` x `size` as the data pipeline makes it: uint8 [3,R,R].

    Raises:
        UploadError: a strip too extreme for it.
    """
    try:
        pixels = Framing(size=size).apply(image, None)
    except Unreadable as error:
        raise UploadError(f"the image cannot be cropped to a square: {error}") from error
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _read(path: Any) -> bytes:
    """At most one byte more than is taken, of a file that Gradio received; of nothing else on this disk."""
    from gradio.utils import get_upload_folder  # only pages receive anything

    refused = UploadError("no such upload: send the file itself")
    if not isinstance(path, str | Path) or "\x00" in str(path):
        raise refused
    try:
        file = Path(path).resolve(strict=True)
        if not file.is_relative_to(Path(get_upload_folder()).resolve()) or not file.is_file():
            raise refused
        with file.open("rb") as opened:
            return opened.read(LARGEST_BYTES + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise refused from error


def _too_many(words: str = "the image has too many pixels") -> UploadError:
    return UploadError(f"{words}: at most {LARGEST_PIXELS // 10**6} million are taken; make it smaller first")
