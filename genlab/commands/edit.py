"""What `genlab sample --edit` works on: an image file, a mask, a place on the canvas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genlab import editing
from genlab.core.contracts import SamplingSettings, to_float
from genlab.core.errors import DataError
from genlab.core.generator import Generator
from genlab.data.decode import Unreadable, decode
from genlab.data.source import digest
from genlab.data.transforms import Framing
from genlab.editing import Editor

_WHITE = 128
"""Of 255: from here on a mask means "make anew"."""


@dataclass(frozen=True)
class Options:
    """The command's options; see its help."""

    image: Path
    mask: Path | None = None
    place: str | None = None
    from_scale: int | None = None
    strength: float | None = None

    def describe(self) -> dict[str, Any]:
        """For the plan beside the results: which edit this was, down to the files' content."""
        return {
            "image": str(self.image),
            "image_digest": digest(_bytes(self.image)),
            "mask": None if self.mask is None else str(self.mask),
            "mask_digest": None if self.mask is None else digest(_bytes(self.mask)),
            "place": self.place,
            "from_scale": self.from_scale,
            "strength": self.strength,
        }


def editor(generator: Generator, settings: SamplingSettings, options: Options) -> Editor:
    """The generator as one of edits. Raises GenlabError for files or options that do not fit it."""
    size = editing.canvas(generator, settings)
    picture, drawn = _read(options.image), None
    if options.mask is not None:
        drawn = _read(options.mask)
        if drawn.size != picture.size:
            raise DataError(
                f"{options.mask}: has {drawn.width} x {drawn.height} pixels, but {options.image} has "
                f"{picture.width} x {picture.height}; make them the same"
            )
    if options.place is None:
        image = _pixels(_fitted(picture, options.image, size))
        mask = None if drawn is None else _chosen(_fitted(drawn, options.image, size))
    else:
        image, mask = _placed(picture, drawn, options, size)
    how: dict[str, Any] = {"from_scale": options.from_scale, "strength": options.strength}
    editing.check(generator, image, mask, settings, **how)
    return Editor(**vars(generator), image=image, mask=mask, **how)


def _fitted(picture: Image.Image, file: Path, size: tuple[int, int]) -> Image.Image:
    """The picture at the size (height, width) of the canvas: cropped and resized by ADM's rule, as folders are."""
    if (picture.height, picture.width) == size:
        return picture
    if size[0] != size[1]:
        raise DataError(
            f"{file}: has {picture.width} x {picture.height} pixels, the canvas {size[1]} x {size[0]}; say where to "
            "put it with --place X,Y, or resize it"
        )
    try:
        return Image.fromarray(Framing(size=size[0]).apply(picture, None))
    except Unreadable as error:
        raise DataError(f"{file}: cannot be used ({error})") from error


def _placed(
    picture: Image.Image, drawn: Image.Image | None, options: Options, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Image [3,H,W] and mask [H,W] of a canvas with the picture somewhere on it; around it all is made anew.

    Raises:
        DataError: the picture does not lie on the canvas.
    """
    left, top = _corner(options.place or "")
    right, bottom = size[1] - left - picture.width, size[0] - top - picture.height
    if min(left, top, right, bottom) < 0:
        raise DataError(
            f"{options.image}: {picture.width} x {picture.height} pixels placed at {left},{top} do not fit on the "
            f"canvas of {size[1]} x {size[0]}"
        )
    around = (left, right, top, bottom)
    # Replicated borders: the encoder sees a little beyond what stays.
    image = F.pad(_pixels(picture)[None], around, mode="replicate")[0]
    inside = torch.zeros(picture.height, picture.width, dtype=torch.bool) if drawn is None else _chosen(drawn)
    return image, F.pad(inside, around, value=True)


def _corner(text: str) -> tuple[int, int]:
    left, comma, top = text.partition(",")
    if not (comma and left.strip().isdecimal() and top.strip().isdecimal()):
        raise DataError(f"--place {text!r}: give the left upper corner in pixels of the canvas, such as 64,0")
    return int(left), int(top)


def _pixels(picture: Image.Image) -> Tensor:
    """[3,H,W] in [-1,1]."""
    return to_float(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def _chosen(drawn: Image.Image) -> Tensor:
    """bool [H,W], true where white; so is what is transparent."""
    return torch.from_numpy(np.array(drawn)).float().mean(2) >= _WHITE


def _read(file: Path) -> Image.Image:
    try:
        return decode(_bytes(file))
    except Unreadable as error:
        raise DataError(f"{file}: no readable image ({error})") from error


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
