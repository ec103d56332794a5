"""DiffAugment (Zhao et al. 2020): differentiable changes of what a discriminator sees, each sample its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from samplers.noise import SampleRng

Policy: TypeAlias = Literal["color", "translation", "cutout"]


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Images [B,C,H,W] under draws [B,1,1,1] in [0,1): shifted by u - 0.5, saturation x 2u, contrast x (u + 0.5)."""
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images [B,C,H,W] moved by whole pixels (int64 [B]); what enters is 0."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) - down[:, None]  # [B,H], where each row comes from
    columns = torch.arange(width, device=x.device) - right[:, None]
    inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]  # [B,H,W]
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2).contiguous()


def cutout(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Images [B,C,H,W] with 0 in a rectangle of half their size around (row, column), int64 [B]."""
    hole = torch.ones(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
    for axis, (length, centre) in enumerate(zip(x.shape[2:], (row, column))):
        side = int(length / 2 + 0.5)
        offset = torch.arange(length, device=x.device) - (centre[:, None] - side // 2)  # [B,length]
        hole &= _within(offset, side).unsqueeze(2 - axis)
    return x * ~hole[:, None]


def diff_augment(images: Tensor, rng: SampleRng, policies: Sequence[Policy]) -> Tensor:
    """Images [B,C,H,W] under the policies, in the order color, translation, cutout; draws from `rng`, of B samples."""
    height, width = images.shape[2:]
    if "color" in policies:
        images = color(images, rng.uniform(1, 1, 1), rng.uniform(1, 1, 1), rng.uniform(1, 1, 1))
    if "translation" in policies:
        down, right = (rng.integers(2 * reach + 1) - reach for reach in (int(s / 8 + 0.5) for s in (height, width)))
        images = translation(images, down, right)
    if "cutout" in policies:
        # half sizes that are even have one more possible centre, so that both borders are cut equally often
        row, column = (rng.integers(s + (1 - int(s / 2 + 0.5) % 2)) for s in (height, width))
        images = cutout(images, row, column)
    return images


def _within(position: Tensor, length: int) -> Tensor:
    return (position >= 0) & (position < length)
