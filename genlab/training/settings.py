"""The `training:` section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from genlab.core.settings import Settings
from genlab.training.optimizers import AdamW, Beta, OptimizerConfig, Schedule

Images = Annotated[int, Field(ge=1, le=10**13)]


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
    ema: tuple[Beta, ...] = (0.9999,)
    """Decays of the averages to keep; the first is sampled, scored and exported. Empty: the raw weights are."""
    ema_warmup: bool = False
    """Let early updates forget quickly: decay min(decay, (1 + n) / (10 + n))."""
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
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} does not divide batch={self.batch}")
        return self

    @property
    def total(self) -> int:
        """Images of the whole run: `images` rounded up to whole batches."""
        return -(-self.images // self.batch) * self.batch
