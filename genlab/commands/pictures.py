"""Grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genlab.core.files import whole_file

_GAP = 2


def save_grid(images: Tensor, file: Path, side: int = 64) -> None:
    """Write uint8 images [n,3,H,W] as one PNG, about square; small images are enlarged to about `side` pixels high."""
    with whole_file(file) as temporary:
        Image.fromarray(grid(images, side).cpu().numpy()).save(temporary, format="PNG")


def grid(images: Tensor, side: int = 64) -> Tensor:
    """uint8 images [n,3,H,W] as one picture [height,width,3], row by row on white."""
    scale = max(1, side // images.shape[-2])
    tiles = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    high, wide = tiles.shape[-2:]
    columns = max(1, round((len(tiles) * high / wide) ** 0.5))
    rows = -(-len(tiles) // columns)
    picture = torch.full((rows * (high + _GAP) + _GAP, columns * (wide + _GAP) + _GAP, 3), 255, dtype=torch.uint8)
    for i, tile in enumerate(tiles.permute(0, 2, 3, 1).cpu()):
        top, left = _GAP + i // columns * (high + _GAP), _GAP + i % columns * (wide + _GAP)
        picture[top : top + high, left : left + wide] = tile
    return picture
