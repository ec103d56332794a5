"""DiT told of an interval of time besides the time where it begins: the network of one-step generators.

"Mean Flows for One-step Generative Modeling", Geng et al. 2025 (arXiv 2505.13447), and "One Step Diffusion via Shortcut
Models", Frans et al., ICLR 2025 (arXiv 2410.12557), put the same second embedding into DiT; what the number says of the
interval is the process's affair (its length, or the logarithm of a step size).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.dit import DiT, DiTConfig
from genlab.nn.embed import TimeEmbedding


class IntervalEmbedding(nn.Module):
    """(time, interval) [B,2] -> [B,D]: the sum of an embedding of each."""

    def __init__(self, width: int):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.interval = TimeEmbedding(width)

    def forward(self, pair: Tensor) -> Tensor:
        t, interval = pair.unbind(1)  # 2 x [B]
        return self.time(t) + self.interval(interval)  # [B,D]


class IntervalDiT(DiT):
    """`forward(x[B,C,H,W], t[B], label[B], interval[B] = 0) -> [B,o,H,W]`; the arguments are those of `DiT`."""

    takes_interval: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.t_embedder = IntervalEmbedding(self.pos_embed.shape[-1])  # type: ignore[assignment]
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, label: Tensor, interval: Tensor | None = None) -> Tensor:
        """x [B,C,H,W], t and interval [B] as the process counts them, label int64 [B] -> [B,o,H,W]."""
        interval = torch.zeros_like(t) if interval is None else interval
        return super().forward(x, torch.stack([t, interval], dim=1), label)


class IntervalDiTConfig(DiTConfig):
    """A DiT with an interval as its second time, for mean_flow and shortcut."""

    name: Literal["interval_dit"] = "interval_dit"  # type: ignore[assignment]  # the tag of another member of the union

    def build(self, spec: LatentSpec, num_classes: int) -> IntervalDiT:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(f"network interval_dit works on continuous latents: got {spec.kind} from the tokenizer")
        sizes = self.model_dump(exclude={"name", "preset"})
        return IntervalDiT(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)
