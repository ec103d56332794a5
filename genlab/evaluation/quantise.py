"""From images in [-1, 1] to 8 bits: the rounding rules of the published sampling scripts.

They differ by up to one level, and truncation darkens every image by half a level on average, which FID sees; so a
protocol names its rule. `../shared/specs/evaluation.md`, section 2.12, says which paper uses which.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from genlab.core.contracts import to_uint8
from genlab.core.errors import NonFinite


class Rounding(StrEnum):
    """How the 256 levels are cut out of [-1, 1]."""

    HALF_UP = "half_up"
    """127.5 x + 128, clamped, truncated: ADM, DiT, SiT, FiTv2, LlamaGen, LightningDiT."""
    HALF_EVEN = "half_even"
    """255 (x + 1) / 2, clamped, rounded half to even: MAR, xAR."""
    SAVE_IMAGE = "save_image"
    """torchvision's `save_image`, 255 (x + 1) / 2 + 0.5, clamped, truncated: DiMR, FlexVAR, StudioGAN."""
    TRUNCATE = "truncate"
    """127.5 (x + 1), clamped, truncated: DMD2, VAR's demo, TiTok's evaluator. Half a level too dark on average."""


def quantise(images: Tensor, rule: Rounding = Rounding.HALF_UP) -> Tensor:
    """Images in [-1, 1] (any floating dtype and shape; overshoot is clamped) -> uint8 of the same shape.

    The arithmetic is float32, in the order of operations of the code that each rule comes from, so levels agree bit
    for bit with it.

    Raises:
        NonFinite: a NaN or infinity, which no rounding can represent; one would spoil every statistic after it.
    """
    if not torch.isfinite(images).all():
        spoiled = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist() if images.ndim > 1 else []
        where = f" in images {spoiled[:10]} of the batch" if spoiled else ""
        raise NonFinite(f"NaN or infinite pixels{where}: the sampler or the decoder overflowed; nothing was rounded")
    return _RULES[Rounding(rule)](images)


def _half_even(images: Tensor) -> Tensor:
    return images.float().add(1.0).div_(2.0).mul_(255.0).clamp_(0.0, 255.0).round_().to(torch.uint8)


def _save_image(images: Tensor) -> Tensor:
    return images.float().add(1.0).div_(2.0).mul_(255.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)


def _truncate(images: Tensor) -> Tensor:
    return images.float().add(1.0).mul_(127.5).clamp_(0.0, 255.0).to(torch.uint8)


_RULES: dict[Rounding, Callable[[Tensor], Tensor]] = {
    Rounding.HALF_UP: to_uint8,
    Rounding.HALF_EVEN: _half_even,
    Rounding.SAVE_IMAGE: _save_image,
    Rounding.TRUNCATE: _truncate,
}
