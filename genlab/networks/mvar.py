"""M-VAR: attention inside each scale, a Mamba-2 layer across them (Ren et al. 2024, arXiv 2411.10433).

The Mamba layers run over the whole sequence, position by position; scale by scale they carry their memory along, so
nothing is computed twice and no cache grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.next_scale import Block, NextScaleSettings
from genlab.networks.var import FixedSchedule, sizes
from genlab.nn.mamba2 import Mamba2, Memory
from genlab.nn.scales import Attend, Grid, Schedule, attend_to_all, within_scales

Preset: TypeAlias = Literal["M-VAR-d12", "M-VAR-d16", "M-VAR-d20", "M-VAR-d24", "M-VAR-d30", "M-VAR-d32"]


class MambaBlock(Block):
    """Attention, a Mamba-2 layer and a perceptron, on modulated norms and behind gates."""

    layers: ClassVar[int] = 3

    def __init__(self, width: int, heads: int, mlp_ratio: float, unit_attention: bool):
        super().__init__(width, heads, mlp_ratio, unit_attention)
        self.mamba = Mamba2(width)

    def forward(self, x: Tensor, c: Tensor, attend: Attend, memory: Memory | None = None) -> Tensor:
        """Positions x [B,T,D] under what `modulation` takes, after those that the memory knows of -> [B,T,D]."""
        m = self.modulation(c)
        x = self.add(x, m, 0, lambda here: self.attn(here, attend))
        x = self.add(x, m, 1, lambda here: self.mamba(here, memory))
        return self.add(x, m, 2, self.ffn)


class MVAR(FixedSchedule):
    """A position attends to its own scale; a memory tells it of all positions before it.

    Args:
        scales: the schedule, coarse to fine.
        channels, vocab: of the tokenizer's maps and codes.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        width, depth, heads, mlp_ratio, unit_attention, gate_init, drop_path: see `MVARConfig`.

    Raises:
        ConfigError: 32 does not divide the width.
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
        gate_init: float = 1e-3,
        drop_path: float = 0.0,
    ):
        if problem := _problem(width):
            raise ConfigError(f"network: {problem}")
        blocks = [MambaBlock(width, heads, mlp_ratio, unit_attention) for _ in range(depth)]
        super().__init__(scales, channels, vocab, width, num_classes, blocks, drop_path=drop_path)
        self.initialise(gate_init, scaled_gates=2)  # of attention and memory; the perceptron's starts wide open
        for block in blocks:
            nn.init.trunc_normal_(block.mamba.conv1d.weight, std=0.02)
            nn.init.constant_(block.mamba.conv1d.get_parameter("bias"), 0.0)

    def parallel(self, grids: Sequence[Grid]) -> list[tuple[Any, ...]]:
        return [(within_scales(grids),)] * len(self.blocks)

    def sequential(self, grids: Sequence[Grid]) -> list[tuple[Any, ...]]:
        return [(attend_to_all, Memory()) for _ in self.blocks]


def _problem(width: int) -> str | None:
    """What is wrong with the width, if anything."""
    if width % 32:
        return f"width must be divisible by 32 (heads of the memory): got {width}; try {width + 32 - width % 32}"
    return None


class MVARConfig(NextScaleSettings):
    """An M-VAR network."""

    name: Literal["mvar"] = "mvar"
    preset: Preset | None = None
    """A published size, such as M-VAR-d16; what is given beside it wins."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="after")
    def _fits_the_memory(self) -> Self:
        if problem := _problem(self.width):
            raise ValueError(problem)
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> MVAR:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        return MVAR(**self.arguments(spec, num_classes))


MVARConfig.presets = PRESETS = {  # the small ones were published without unit attention
    "M-VAR-d12": {**sizes(12, 1e-3), "unit_attention": False},
    "M-VAR-d16": {**sizes(16, 1e-3), "unit_attention": False},
    "M-VAR-d20": {**sizes(20, 1e-3), "unit_attention": False},
    "M-VAR-d24": sizes(24, 1e-4),
    "M-VAR-d30": sizes(30, 1e-5),
    "M-VAR-d32": sizes(32, 1e-5),
}
