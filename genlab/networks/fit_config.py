"""The config of FiT and FiTv2, and the published sizes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.networks.fit import FiT, rope_problem, size_problem
from genlab.networks.fit_blocks import Modulation, Norm, Perceptron
from genlab.nn.grid_rope import Extrapolation

Preset: TypeAlias = Literal["FiT-XL/2", "FiTv2-B/2", "FiTv2-XL/2", "FiTv2-3B/2"]


class FiTConfig(Settings):
    """A FiTv2, or with the preset or options of FiT a FiT. `preset` fills in what is not given."""

    name: Literal["fit"] = "fit"
    preset: Preset | None = None
    """A published size, such as FiTv2-XL/2; what is given beside it wins."""
    patch: PositiveInt = 2
    """Side of a patch; time goes up with the inverse fourth power at worst."""
    width: PositiveInt = 384
    """Features of a token; divisible by heads, and a head's by 4."""
    depth: PositiveInt = 12
    """Blocks."""
    heads: PositiveInt = 6
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width; the swiglu perceptron has two thirds."""
    mlp: Perceptron = "swiglu"
    """swiglu (FiTv2), wide_swiglu (FiT) or gelu."""
    modulation: Modulation = "lora"
    """How blocks take the condition: lora (FiTv2), full (FiT) or swiglu."""
    lora_rank: PositiveInt | None = None
    """Features of a low-rank modulation; by default a quarter of the width."""
    norm: Norm = "layernorm"
    """Norm of tokens."""
    q_norm: Norm = "layernorm"
    """Norm of queries: layernorm in FiTv2, none in FiT."""
    k_norm: Norm = "layernorm"
    """Norm of keys: layernorm in FiTv2, none in FiT."""
    turn_values: bool = False
    """Rotary positions on values too."""
    learn_sigma: bool = False
    """Twice the output channels, for a diffusion that learns its variance (FiT)."""
    time_shift: PositiveFloat = 1.0
    """Moves the times that the network is told; 1 leaves them alone."""
    extrapolation: Extrapolation = "normal"
    """How positions adapt to grids larger than the trained one."""
    decoupled: bool = False
    """Adapt rows and columns each by its own length."""
    trained_side: int = Field(16, ge=2)
    """Tokens on a side of the grids that the weights were trained on."""
    online: bool = False
    """Adapt positions to each image's size, for training at high resolution."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        problem = size_problem(self.width, self.heads) or rope_problem(self.extrapolation, self.online)
        if problem:
            raise ValueError(problem)
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> FiT:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network fit works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        options = self.model_dump(exclude={"name", "preset"})
        return FiT(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **options)


_FIT: dict[str, Any] = {"mlp": "wide_swiglu", "modulation": "full", "q_norm": "none", "k_norm": "none"}
PRESETS: dict[str, dict[str, Any]] = {  # table 1 of FiT, table 2 of FiTv2
    "FiT-XL/2": {"depth": 28, "width": 1152, "heads": 16, "patch": 2, "learn_sigma": True, **_FIT},
    "FiTv2-B/2": {"depth": 15, "width": 768, "heads": 12, "patch": 2},
    "FiTv2-XL/2": {"depth": 36, "width": 1152, "heads": 16, "patch": 2},
    "FiTv2-3B/2": {"depth": 40, "width": 2304, "heads": 24, "patch": 2},
}
