"""FlexVAR: VAR's transformer for any schedule and grid (Jiao et al., NeurIPS 2025, arXiv 2502.20313).

It has no levels, and one table of places that is averaged down (or spread out) to each scale, square or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.networks.next_scale import Block, NextScaleNetwork, NextScaleSettings
from genlab.networks.var import sizes
from genlab.nn.scales import Grid, Schedule

Preset: TypeAlias = Literal["FlexVAR-d16", "FlexVAR-d20", "FlexVAR-d24"]
_SIDE = 32
"""Of the table of places."""


class FlexVAR(NextScaleNetwork):
    """As `VAR`, for any schedule whose first scale has as many positions as that in training.

    Args:
        scales: the default schedule, coarse to fine.
        channels, vocab: of the tokenizer's maps and codes.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        width, depth, heads, mlp_ratio, unit_attention, shared_adaln, gate_init, drop_path: see `FlexVARConfig`.
    """

    def __init__(
        self,
        scales: Schedule,
        channels: int,
        vocab: int,
        num_classes: int = 1000,
        width: int = 1024,
        depth: int = 16,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        unit_attention: bool = True,
        shared_adaln: bool = False,
        gate_init: float = 1e-3,
        drop_path: float = 0.0,
    ):
        blocks = [Block(width, heads, mlp_ratio, unit_attention, shared_adaln) for _ in range(depth)]
        super().__init__(scales, channels, vocab, width, num_classes, blocks, shared_adaln, drop_path=drop_path)
        self.pos_1LC = nn.Parameter(_waves(width))  # [1,D,32,32]
        self.initialise(gate_init, scaled_gates=2)

    def places(self, grids: Sequence[Grid]) -> Tensor:
        maps = [F.adaptive_avg_pool2d(self.pos_1LC, grid).flatten(2) for grid in grids]  # each [1,D,l]
        return torch.cat(maps, dim=2).mT


def _waves(width: int) -> Tensor:
    """[1,D,32,32]: sines of the row in the even channels, cosines of the column in the odd ones."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))  # [D/2]
    angle = frequency[:, None] * torch.arange(_SIDE)  # [D/2,32]
    rows, columns = angle.sin().unsqueeze(2), angle.cos().unsqueeze(1)
    waves = torch.stack(torch.broadcast_tensors(rows, columns), dim=1)  # [D/2,2,32,32]
    return waves.flatten(0, 1)[:width].unsqueeze(0)


class FlexVARConfig(NextScaleSettings):
    """A FlexVAR network."""

    name: Literal["flexvar"] = "flexvar"
    preset: Preset | None = None
    """A published size, such as FlexVAR-d16; what is given beside it wins."""
    shared_adaln: bool = False
    """One modulation for all blocks, each of which adds a constant; saves a third of the parameters."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def build(self, spec: LatentSpec, num_classes: int) -> FlexVAR:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        return FlexVAR(**self.arguments(spec, num_classes))


FlexVARConfig.presets = PRESETS = {
    "FlexVAR-d16": sizes(16, 1e-3),
    "FlexVAR-d20": sizes(20, 1e-3),
    "FlexVAR-d24": sizes(24, 1e-4),
}
