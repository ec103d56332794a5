"""Adaptive layer norm: a condition shifts and scales normalised tokens (Peebles & Xie 2023, figure 3)."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.nn.rms_norm import RmsNorm


def norm(width: int, rms: bool = False) -> nn.Module:
    """What a condition modulates: a layer norm without weights of its own, or RMSNorm, which has them."""
    return RmsNorm(width) if rms else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def modulation(width: int, count: int) -> nn.Sequential:
    """Condition [B,D] -> [B, count * D], to be chunked into the vectors that `modulate` and gates take."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """x [B,T,D] times 1 + scale [B,D] plus shift [B,D], if there is one."""
    scaled = x * (1 + scale.unsqueeze(1))
    return scaled if shift is None else scaled + shift.unsqueeze(1)
