"""VAR: a transformer that predicts an image's codes scale by scale (Tian et al., NeurIPS 2024, arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.next_scale import Block, NextScaleNetwork, NextScaleSettings
from genlab.nn.scales import Grid, Schedule, grids_of, lengths_of

Preset: TypeAlias = Literal["VAR-d16", "VAR-d20", "VAR-d24", "VAR-d30", "VAR-d36-s"]


class FixedSchedule(NextScaleNetwork):
    """A network that has learned the places and levels of one schedule. The arguments are `NextScaleNetwork`'s."""

    def __init__(
        self,
        scales: Schedule,
        channels: int,
        vocab: int,
        width: int,
        num_classes: int,
        blocks: Sequence[Block],
        shared: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__(scales, channels, vocab, width, num_classes, blocks, shared, drop_path)
        self.lvl_embed = nn.Embedding(len(self.grids), width)
        self.pos_1LC = nn.Parameter(torch.empty(1, sum(lengths_of(self.grids)), width))
        nn.init.trunc_normal_(self.pos_1LC, std=(1 / width / 3) ** 0.5)

    def places(self, grids: Sequence[Grid]) -> Tensor:
        lengths = torch.tensor(lengths_of(grids), device=self.pos_1LC.device)
        return self.lvl_embed.weight.repeat_interleave(lengths, dim=0) + self.pos_1LC

    def check(self, scales: Schedule | None) -> tuple[Grid, ...]:
        if scales is not None and grids_of(scales) != self.grids:
            raise ConfigError(
                f"this network knows the places of scales {list(self.grids)} only, not of {list(grids_of(scales))}; "
                "FlexVAR takes any"
            )
        return self.grids


class VAR(FixedSchedule):
    """A position sees its own scale and all coarser ones.

    Args:
        scales: the schedule, coarse to fine.
        channels, vocab: of the tokenizer's maps and codes.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        width, depth, heads, mlp_ratio, unit_attention, shared_adaln, gate_init, drop_path: see `VARConfig`.
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
        self.initialise(gate_init, scaled_gates=2)


class VARConfig(NextScaleSettings):
    """A VAR network."""

    name: Literal["var"] = "var"
    preset: Preset | None = None
    """A published size, such as VAR-d16; what is given beside it wins."""
    shared_adaln: bool = False
    """One modulation for all blocks, each of which adds a constant; saves a third of the parameters."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def build(self, spec: LatentSpec, num_classes: int) -> VAR:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        return VAR(**self.arguments(spec, num_classes))


def sizes(depth: int, gate: float) -> dict[str, Any]:
    """The published rule: 64 features and one head for each block."""
    return {"depth": depth, "width": 64 * depth, "heads": depth, "gate_init": gate}


VARConfig.presets = PRESETS = {
    "VAR-d16": sizes(16, 1e-3),
    "VAR-d20": sizes(20, 1e-3),
    "VAR-d24": sizes(24, 1e-4),
    "VAR-d30": sizes(30, 1e-5),
    "VAR-d36-s": {**sizes(36, 5e-6), "shared_adaln": True},
}
