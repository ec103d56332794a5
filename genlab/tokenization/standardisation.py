"""Raw latents -> latents of about zero mean and unit variance, and back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor

from genlab.core.contracts import LatentSpec


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


PerChannel = Annotated[tuple[float, ...], BeforeValidator(_as_tuple)]
"""One number for all channels, or one per channel."""


def check_lengths(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises ValueError unless there are one or `channels` values each, and all standard deviations are positive."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values; give one, or one for each of the {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, not {min(std)}")


def standardise(raw: Tensor, spec: LatentSpec) -> Tensor:
    """(raw - mean) / std of latents [B,C,H,W]."""
    return (raw - _column(spec.mean, raw)) / _column(spec.std, raw)


def unstandardise(tokens: Tensor, spec: LatentSpec) -> Tensor:
    """tokens * std + mean of latents [B,C,H,W]."""
    return tokens * _column(spec.std, tokens) + _column(spec.mean, tokens)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(-1, 1, 1)
