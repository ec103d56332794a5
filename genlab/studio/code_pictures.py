"""Codes and latents as pictures."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import torch
from torch import Tensor

from genlab.core.contracts import to_uint8

_STEP = 1.22074408460575947536  # g^4 = g + 1; multiples of 1/g, 1/g^2, 1/g^3 (modulo 1) fill the cube evenly
_SIDE = 128  # pixels at least along a picture's longer side
_SIGMAS = 3.0  # standard deviations from black to grey, and from grey to white
BARS = 48


@lru_cache(maxsize=4)
def palette(vocab: int) -> Tensor:
    """A colour for each code, uint8 [V,3]: the same for the same code, whatever the vocabulary and the image."""
    colours = []
    for code in range(1, vocab + 1):
        hue, saturation, value = (code * _STEP**-power % 1.0 for power in (1, 2, 3))
        colours.append(colorsys.hsv_to_rgb(hue, 0.35 + 0.55 * saturation, 0.4 + 0.55 * value))
    return torch.tensor(colours).mul(255.0).round().to(torch.uint8)


def code_map(codes: Tensor, vocab: int) -> Tensor:
    """Codes int64 [h,w] in their colours, uint8 [3,h*k,w*k], each a square of k pixels."""
    return _enlarged(palette(vocab)[codes.cpu()].permute(2, 0, 1))


def channel_map(values: Tensor) -> Tensor:
    """One channel [h,w] of a standardised latent in greys, uint8 [3,h*k,w*k]; 0 is the middle one."""
    return _enlarged(to_uint8(values / _SIGMAS).cpu().expand(3, -1, -1))


def bars(counts: Tensor) -> list[float]:
    """How often entries of a codebook were used, int [V], as the heights of at most `BARS` bars, largest 1.

    The most used come first, the unused are left out; where there are more entries than bars, each stands for a few.
    """
    ranked = counts[counts > 0].sort(descending=True).values.double()
    parts = [part.mean().item() for part in ranked.tensor_split(max(1, min(BARS, len(ranked))))]
    return [round(part / parts[0], 4) for part in parts] if len(ranked) else []


def _enlarged(picture: Tensor) -> Tensor:
    factor = -(-_SIDE // max(picture.shape[1:]))
    return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
