"""A head that maps a transformer's tokens into another network's space of features."""

from __future__ import annotations

from torch import nn


class Projector(nn.Sequential):
    """Three Linears with SiLU between them (REPA, Yu et al., ICLR 2025, arXiv 2410.06940): [B,T,D] -> [B,T,outputs]."""

    def __init__(self, width: int, hidden: int, outputs: int):
        super().__init__(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
        )
