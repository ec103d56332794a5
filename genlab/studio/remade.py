"""The order behind an image that the studio made, from what its PNG file says of itself."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image

from genlab.core.errors import GenlabError
from genlab.studio.catalog import Entry, Scan
from genlab.studio.orders import Limits, Order, place
from genlab.studio.pictures import KEY
from genlab.studio.uploads import UploadError, receive

_MOST = 65_536  # characters that an image may say


def order_behind(sent: object, scan: Scan, limits: Limits) -> Order:
    """The order that made an uploaded image, with the run of the same name. The pixels are not decoded.

    Args:
        sent: as `uploads.receive` takes it.

    Raises:
        GenlabError: no image of the studio's, damaged, its run is not here, or the run cannot do this (any more).
    """
    told = _told(receive(sent))
    try:
        entry = _entry(told["run"], told["images"], scan)
        classes, per_class, seed, sampling = (told[key] for key in ("classes", "per_class", "seed", "sampling"))
    except KeyError as error:
        raise UploadError(f"the image does not say how it was made: its {error} is missing") from None
    if not isinstance(sampling, dict):
        raise UploadError("the image does not say how it was made: its 'sampling' is damaged")
    return place(entry, classes, per_class, seed, sampling, limits)


def _told(data: bytes) -> dict[str, Any]:
    """What the text chunk says. `data` has passed `uploads.check_upload`."""
    with Image.open(io.BytesIO(data)) as image:  # its header, with the text before the pixels
        text = image.info.get(KEY)
    if not isinstance(text, str):
        raise UploadError("this image was not made here: only PNG files of the studio say how they were made")
    try:
        told = json.loads(text[:_MOST])
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise UploadError("what the image says of itself is damaged")
    return told


def _entry(run: Any, images: Any, scan: Scan) -> Entry:
    """The run of that name, of several the one that was trained as long."""
    found = [entry for entry in scan.entries.values() if entry.name == run]
    if not found:
        raise GenlabError(f"the image was made by {str(run)[:60]!r}: no run of that name is here")
    return max(found, key=lambda entry: entry.images == images)
