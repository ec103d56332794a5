"""The `training:` section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from genlab.core.settings import Settings
from genlab.training.objective import Role
from genlab.training.optimizers import AdamW, Beta, OptimizerConfig, Schedule

Images = Annotated[int, Field(ge=1, le=10**13)]
Width = Annotated[float, Field(gt=0, lt=0.288)]
"""Of a power-function average: the standard deviation of its profile as a share of the training so far."""


class TrainingSettings(Settings):
    """How long and how to train. Progress is counted in images, never in steps or epochs."""

    images: Images
    """Images to train on in all."""
    batch: int = Field(default=256, ge=1, le=1_000_000)
    """Images per optimizer step, over all processes together."""
    micro_batch: PositiveInt | None = None
    """Images per forward pass and process; smaller than a process's share accumulates gradients. Default: its share."""
    lr: float = Field(default=1e-4, gt=0, le=100)
    optimizer: OptimizerConfig = AdamW()
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm."""
    clip_value: PositiveFloat | None = None
    """Largest entry of a gradient, after the norm (ARFlow)."""
    ema: tuple[Beta, ...] = (0.9999,)
    """Decays of the averages to keep; the first is sampled, scored and exported. Empty: the raw weights are."""
    ema_warmup: bool = False
    """Let early updates forget quickly: decay min(decay, (1 + n) / (10 + n))."""
    ema_power: tuple[Width, ...] = ()
    """Averages whose width is a share of the training so far (EDM2; 0.05 and 0.10 are the usual two). From snapshots of
    them, kept in averages/, `genlab export --ema` makes the average of any other width. Where `ema` is empty, the first
    is sampled, scored and exported."""
    snapshot_every: Images | None = None
    """Images between these snapshots (also one at the end), in half precision; EDM2: 8 Mi. Default: 32 in the run."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples trained without their class, for classifier-free guidance."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward passes; weights, optimizer and averages are always fp32."""
    tf32: bool = True
    """Allow TF32 matrix products on GPUs that have them (with precision fp32)."""
    compile: bool = False
    """Run the trained networks through torch.compile."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    workers: int = Field(default=0, ge=0, le=256)
    """Data-loading processes per training process; 0 loads in the training process (best for in-memory data)."""

    log_every: Images = 5_000
    preview_every: Images | None = None
    """Images between sample grids (also one at the end). Default: ten grids in the run."""
    preview_count: int = Field(default=64, ge=1, le=1024)
    checkpoint_every: Images | None = None
    """Images between checkpoints (also one at the end and one on SIGTERM or SIGINT). Default: ten in the run."""
    keep_last: PositiveInt = 2
    """Checkpoints to keep."""
    keep_every: Images | None = None
    """Keep for good the first checkpoint after each multiple of this many images."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where the log goes besides log.jsonl, through Accelerate."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.images < self.batch:
            raise ValueError(f"images={self.images} is less than one batch of {self.batch}")
        if len(set(self.ema)) < len(self.ema):
            raise ValueError(f"ema={list(self.ema)} names a decay twice")
        if len(set(self.ema_power)) < len(self.ema_power):
            raise ValueError(f"ema_power={list(self.ema_power)} names a width twice")
        if self.snapshot_every and not self.ema_power:
            raise ValueError(
                "snapshot_every is for ema_power, which is empty; set ema_power=[0.05, 0.10] or leave it out"
            )
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} does not divide batch={self.batch}")
        return self

    @property
    def average(self) -> float | str | None:
        """What is sampled, scored and exported: a decay, "power-" and a width, or None for the weights themselves."""
        if self.ema:
            return self.ema[0]
        return f"power-{self.ema_power[0]:g}" if self.ema_power else None

    def role(self, network: nn.Module) -> Role:
        """`network`, to be trained as these settings say."""
        return Role(
            network,
            self.optimizer,
            lr=self.lr,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            ema=self.ema,
            ema_warmup=self.ema_warmup,
            ema_power=self.ema_power,
        )

    @property
    def total(self) -> int:
        """Images of the whole run: `images` rounded up to whole batches."""
        return -(-self.images // self.batch) * self.batch
