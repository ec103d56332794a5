"""DiMR: noise predicted at several resolutions, each from the features of the coarser one below it.

"Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and Time-Dependent Layer
Normalization", Liu et al., NeurIPS 2024 (arXiv 2406.09416). A transformer works on the coarsest grid, ConvNeXts on the
finer ones; time enters through the norms alone.

Letters: B batch, C latent channels, H W latent grid, K classes, S stages, r the ratio of the latent grid to a stage's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, Literal, Self, TypeAlias, cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.networks.dimr_blocks import NormName
from genlab.networks.dimr_stage import BlockName, Stage
from genlab.nn.td_concat import RunningConcat
from genlab.nn.td_norm import TimeVectors

Preset: TypeAlias = Literal["DiMR-XL/2R", "DiMR-G/2R", "DiMR-XL/3R"]


class DiMR(Network):
    """`forward(x[B,C,H,W], t[B], label[B]) -> [B,C,H,W]`, the prediction of the finest stage.

    With `every_resolution=True` it returns the predictions of all stages, coarse to fine, as a process asks for that
    trains them all; a process that does not leaves the coarser heads untrained.

    Args:
        grid: (H, W), the largest that positions are known for.
        channels: C.
        stages: the arguments of each `Stage` from `block` to `dropout`, coarse to fine; the finest has the grid of x.
        num_classes: K; 0 for an unconditional network, which ignores its labels.
        norm: of the blocks: td_rms (of all published sizes), td_layer, rms or first_rms.
        rope: rotary positions and attention by cosines in transformers, in place of their tables.
        block_gradients: train each stage by its own prediction alone.
        time_range: the t that mean clean and pure noise, in the unit of the process.

    Raises:
        ConfigError: sizes that do not fit.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        stages: Sequence[Mapping[str, Any]],
        num_classes: int = 1000,
        norm: NormName = "td_rms",
        rope: bool = False,
        block_gradients: bool = False,
        time_range: tuple[float, float] = (0.0, 1000.0),
    ):
        super().__init__()
        if problem := _problem([StageConfig(**stage) for stage in stages], rope, num_classes):
            raise ConfigError(f"network.{problem}")
        self.num_classes = num_classes
        self.block_gradients = block_gradients
        self.time_range = time_range
        self.times = TimeVectors()
        self.stages = nn.ModuleList()
        before: Stage | None = None
        for sizes in stages:
            own = _own_grid(grid, sizes.get("patch", 1) * sizes.get("pool", 1))
            before = Stage(own, channels, self.times, before, norm=norm, rope=rope, num_classes=num_classes, **sizes)
            self.stages.append(before)
        self.times.allocate()
        self._initialise()

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, every_resolution: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """x [B,C,H,W], t [B], label int64 [B] -> [B,C,H,W] in the dtype of x, or S x [B,C,H/r,W/r].

        Raises:
            ConfigError: in training, if each stage is to learn from its own prediction, but only the finest is asked.
        """
        clean, noisy = self.time_range
        vectors = self.times((2 * t.float() - (clean + noisy)) / (noisy - clean))
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        predictions: list[Tensor] = []
        features: RunningConcat | None = None
        stages = cast(list[Stage], list(self.stages))
        for stage, finer in zip_longest(stages, stages[1:]):
            following = finer.collect(vectors) if finer else None
            h = stage(x, label, vectors, features, following, self.block_gradients, recompute)  # [B,h,w,D]
            if every_resolution or finer is None:
                predictions.append(stage.predict(h, vectors).to(x.dtype))  # [B,C,h,w]
            features = following
        if every_resolution:
            return tuple(predictions)
        return self._with_idle_heads(predictions[-1]) if torch.is_grad_enabled() else predictions[-1]

    def _with_idle_heads(self, prediction: Tensor) -> Tensor:
        """The same numbers, by which the coarser heads get gradients of zero: DDP waits for one of every parameter."""
        if self.block_gradients and self.training and len(self.stages) > 1:
            raise ConfigError(
                "network.block_gradients trains each stage by its own prediction, but this process learns the finest"
                f" alone: set it to false, or take process vp with resolutions={len(self.stages)}"
            )
        idle = [p.sum() for stage in cast(list[Stage], list(self.stages))[:-1] for p in stage.head.parameters()]
        return prediction + 0 * torch.stack(idle).sum().to(prediction.dtype) if idle else prediction

    def _initialise(self) -> None:
        """Small normal Linears and embeddings; convolutions stay as torch makes them, and nothing is silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _own_grid(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """The grid of a stage that sees squares of `unit` as one."""
    if grid[0] % unit or grid[1] % unit:
        raise ConfigError(
            f"network.stages: patch times pool must divide the latent grid: got {unit} for a grid of "
            f"{grid[0]} x {grid[1]}; choose other patches or another image size"
        )
    return grid[0] // unit, grid[1] // unit


class StageConfig(Settings):
    """One stage of a DiMR."""

    block: BlockName
    """transformer, for the coarsest grid, or convnext."""
    width: PositiveInt
    """Features of a position; in a transformer divisible by heads."""
    depth: PositiveInt
    """Blocks; odd, as the second half mirrors the first."""
    hidden: PositiveInt | None = None
    """Hidden features of a block's perceptron; by default twice the width."""
    patch: PositiveInt = 1
    """Side of a patch; 1 in the finest stage."""
    pool: PositiveInt = 1
    """Side of the squares over which the input is averaged before it is cut into patches."""
    heads: PositiveInt = 8
    """Attention heads of a transformer."""
    kernel: PositiveInt = 7
    """Side of a ConvNeXt's convolutions; odd."""
    head_kernel: PositiveInt = 3
    """Side of the last convolution; odd."""
    dropout: float = Field(0.0, ge=0, lt=1)


class DiMRConfig(Settings):
    """A DiMR. `preset` fills in the stages."""

    name: Literal["dimr"] = "dimr"
    preset: Preset | None = None
    """A published size; stages given beside it win."""
    stages: tuple[StageConfig, ...] = ()
    """From coarse to fine."""
    norm: NormName = "td_rms"
    """Norm of the blocks: td_rms (published), or for ablations td_layer, rms or first_rms."""
    rope: bool = False
    """Rotary positions and attention by cosines in place of position tables; for data without classes."""
    block_gradients: bool = False
    """Train each stage by its own prediction alone."""
    time_range: tuple[float, float] = (0.0, 1000.0)
    """The times that mean clean and pure noise to the process: (0, 1000) for vp and diffusion, (1, 0) for flow."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {"stages": PRESETS[data["preset"]], **data} if data.get("preset") in PRESETS else data

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not self.stages:
            raise ValueError(f"stages are missing: list them, or give a preset such as {next(iter(PRESETS))}")
        if problem := _problem(self.stages, self.rope):
            raise ValueError(problem)
        finest = self.stages[-1]
        if finest.patch * finest.pool != 1:
            raise ValueError(
                f"the last of stages must have patch 1 and pool 1: got patch {finest.patch}, pool {finest.pool}"
            )
        if self.time_range[0] == self.time_range[1]:
            raise ValueError(f"time_range needs two different times: got {self.time_range}; try (0, 1000)")
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> DiMR:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network dimr works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        options = self.model_dump(exclude={"name", "preset"})
        return DiMR(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **options)


def _problem(stages: Sequence[StageConfig], rope: bool, num_classes: int = 0) -> str | None:
    """What is wrong with the sizes, if anything."""
    for number, stage in enumerate(stages):
        where = f"stages[{number}]"
        if stage.depth % 2 == 0:
            return f"{where}: depth must be odd: got {stage.depth}; try {stage.depth + 1}"
        if stage.kernel % 2 == 0 or stage.head_kernel % 2 == 0:
            return f"{where}: kernel and head_kernel must be odd: got {stage.kernel} and {stage.head_kernel}"
        if stage.block == "transformer" and stage.width % stage.heads:
            return f"{where}: width must be divisible by heads: got width {stage.width}, heads {stage.heads}"
        if stage.block == "transformer" and rope and stage.width // stage.heads % 4:
            return f"{where}: rope needs width / heads divisible by 4: got {stage.width} / {stage.heads}"
    if rope and num_classes:
        return f"rope has no place for a class token: got {num_classes} classes; set rope to false"
    return None


def _sizes(width: int, depths: Sequence[int]) -> list[dict[str, Any]]:
    """A transformer with head width 60 or 72, and ConvNeXts of half the width of the stage before."""
    finer = [
        {"block": "convnext", "width": width >> level, "depth": depth, "patch": 1 << len(depths) - 1 - level}
        for level, depth in enumerate(depths[1:], start=1)
    ]
    coarse = {"block": "transformer", "width": width, "depth": depths[0], "patch": 1 << len(depths) - 1, "heads": 16}
    return [coarse, *finer]


PRESETS: dict[str, list[dict[str, Any]]] = {  # table 1 of the paper; FID 1.70 and 1.63 at 256, 2.89 at 512
    "DiMR-XL/2R": _sizes(960, (39, 21)),
    "DiMR-G/2R": _sizes(1152, (57, 29)),
    "DiMR-XL/3R": _sizes(960, (39, 21, 21)),
}
