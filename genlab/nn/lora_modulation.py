"""Adaptive layer norm of low rank: what a block adds to a modulation that all blocks share (FiTv2, section 3.2)."""

from __future__ import annotations

from torch import nn


def lora_modulation(width: int, count: int, rank: int) -> nn.Sequential:
    """Condition [...,D] -> [..., count * D] through `rank` features, linear after the first activation."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, rank), nn.Linear(rank, count * width))
