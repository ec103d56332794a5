"""The work of the Edit panel: an image laid on its canvas with its mask, and made anew in part."""

from __future__ import annotations

import hashlib
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genlab import editing
from genlab.core.contracts import to_float
from genlab.core.errors import GenlabError
from genlab.studio.edit_orders import CELLS, IMAGE, MASK, REGIONS, Edit, EditOrder
from genlab.studio.models import Models
from genlab.studio.pictures import to_png
from genlab.studio.store import Job
from genlab.studio.uploads import UploadError, decode_upload, fit
from genlab.studio.work.generating import deliver, fill
from genlab.studio.worker import Running

_TOUCHED = 32
"""Of 255: from here on a pixel counts as drawn on."""


def edit(running: Running, models: Models) -> dict[str, Any]:
    """Fill an EditOrder: as `generate`, and `given`, the image and the mask as they were used, if there is one."""
    order = EditOrder.of(running.job.wants)
    generator = models.get(order.entry)
    height, width = editing.canvas(generator, order.settings)
    if height != width:
        raise GenlabError(f"the canvas has {width} x {height} pixels; use `genlab sample --edit` with --place for that")
    image, mask = _compose(running.job, order.edit, height)
    how: dict[str, Any] = {"from_scale": order.edit.from_scale, "strength": order.edit.strength}
    editing.check(generator, image, mask, order.settings, **how)
    given = _save(running.job.results, image, mask)
    order = replace(order, digests={f"{file.stem}_digest": _digest(file) for file in given})
    editor = editing.Editor(**vars(generator), image=to_float(image), mask=mask, **how)
    begun = time.monotonic()
    images = fill(running, editor, order)
    seconds = time.monotonic() - begun
    files, archive = deliver(order, images, running.job.results)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as zipped:
        for file in given:
            zipped.write(file, file.name)
    named = [(file.name, order.caption(index)) for index, file in enumerate(files)]
    return {
        "given": [(file.name, file.stem.capitalize()) for file in given],
        "files": named,
        "archive": archive.name,
        "seconds": seconds,
    }


def _compose(job: Job, edit: Edit, size: int) -> tuple[Tensor, Tensor | None]:
    """Image uint8 [3,R,R] and mask bool [R,R] of the canvas; no mask if it would choose nothing."""
    picture = decode_upload(job.given(IMAGE).read_bytes())
    side = max(round(edit.share * size), 1)
    image, mask = fit(picture, side), torch.zeros(side, side, dtype=torch.bool)
    if edit.cells:
        mask |= _cells(edit.cells, side)
    if edit.masked:
        drawn = decode_upload(job.given(MASK).read_bytes())
        if drawn.size != picture.size:
            raise UploadError(f"the mask has {_pixels(drawn)} pixels, the image {_pixels(picture)}; they must agree")
        mask |= fit(drawn, side).float().mean(0) >= _TOUCHED
    if edit.region:
        left, top, right, bottom = (round(end * side) for end in REGIONS[edit.region])
        mask[top:bottom, left:right] = True
    left, top = round(edit.left * (size - side)), round(edit.top * (size - side))
    around = (left, size - side - left, top, size - side - top)
    # Replicated borders: the encoder sees a little beyond what stays.
    canvas = F.pad(image[None].float(), around, mode="replicate")[0].byte()
    mask = F.pad(mask, around, value=True)
    return canvas, mask if mask.any() else None


def _cells(text: str, side: int) -> Tensor:
    """bool [r,r]: where enough was drawn, of the cells as `Edit` has them."""
    digits = torch.tensor([int(digit, 16) for digit in text])
    grid = (digits[:, None] >> torch.tensor([3, 2, 1, 0]) & 1).view(1, 1, CELLS, CELLS)
    return F.interpolate(grid.float(), (side, side), mode="area")[0, 0] >= _TOUCHED / 255


def _pixels(image: Image.Image) -> str:
    return f"{image.width} × {image.height}"


def _save(folder: Path, image: Tensor, mask: Tensor | None) -> list[Path]:
    """Both as `genlab sample --edit` takes them."""
    named = {"image": image}
    if mask is not None:
        named["mask"] = (mask * 255).byte().expand(3, -1, -1)
    for name, pixels in named.items():
        (folder / f"{name}.png").write_bytes(to_png(pixels, {}))
    return [folder / f"{name}.png" for name in named]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
