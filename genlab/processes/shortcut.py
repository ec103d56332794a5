"""Shortcut models: a network told the size of its step learns that one step does what two of half the size do.

"One Step Diffusion via Shortcut Models", Frans et al., ICLR 2025 (arXiv 2410.12557). Time runs from noise at t = 0 to
data at t = 1, as in `flow`. Networks take (x, t, label, level): a step of level k is of size 2^-k, and the finest, of
which there are M, are steps of plain flow matching.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator
from torch import Tensor

from genlab.core.contracts import LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes.guidance import combine
from genlab.processes.mean_flow import as_rows, bare, takes_interval
from genlab.processes.mean_flow_sampling import MeanFlowSampling, walk
from samplers.noise import SampleRng

_LEAST_NOISE = 1e-5
"""Share of the noise that is left at t = 1."""


@dataclass(frozen=True)
class Shortcut(Process):
    """Steps and how they are drawn; see ShortcutConfig for each field.

    Every sample draws its own level; the paper's code divides a fixed number of rows, the first ones, equally among
    them. Labels are dropped in all rows, in the paper's only where flow matching is trained.
    """

    finest: int = 128
    bootstrap_share: float = 0.125
    guidance: float = 1.0
    clip: float = 4.0

    takes_average: ClassVar[bool] = True

    @property
    def finest_level(self) -> int:
        """log2 of the number of finest steps."""
        return self.finest.bit_length() - 1

    def loss(
        self,
        network: Callable[..., Tensor],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        average: Callable[..., Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loss at a random time and step size for each of the tokens [B,C,H,W]; see `losses_at`."""
        coarse = rng.uniform() < self.bootstrap_share  # [B]
        level = torch.where(coarse, rng.integers(self.finest_level), self.finest_level).float()  # [B]
        t = torch.floor(rng.uniform() * 2**level) / 2**level  # [B], where a step of this size may begin
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_at(network, average or bare(network), tokens, noise, t, level, label)

    def losses_at(
        self,
        network: Callable[..., Tensor],
        average: Any,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        level: Tensor,
        label: Tensor,
    ) -> dict[str, Tensor]:
        """ "loss" [B], the mean squared error for steps of `level` [B] from times t [B] (the paper's eq. 5).

        Args:
            average: the network under its moving average, which takes the two half steps.
            x, noise: [B,C,H,W].
        """
        z, target = state(x, noise, t)
        rows = (level < self.finest_level).nonzero().flatten()
        if len(rows):
            two = self.two_halves(average, z[rows], t[rows], level[rows], label[rows])
            target = target.index_copy(0, rows, two)
        out = network(z, t, label, level)  # [B,C,H,W]
        return {"loss": (out - target).float().square().flatten(1).mean(1)}

    @torch.no_grad()
    def two_halves(self, network: Any, x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """The velocity [B,C,H,W] of one step of `level` that goes where two of half its size go (eq. 4)."""
        half = 2 ** -(level + 1)  # [B]
        first = self.velocity(network, x, t, level + 1, label)
        middle = (x + as_rows(half, x) * first).clamp(-self.clip, self.clip)
        second = self.velocity(network, middle, t + half, level + 1, label)
        return ((first + second) / 2).clamp(-self.clip, self.clip)

    def velocity(self, network: Any, x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """The velocity [B,C,H,W] of a step of `level` [B]; that of the finest, from which all learn, is guided."""
        if self.guidance == 1:
            return network(x, t, label, level)
        rows = (level == self.finest_level).nonzero().flatten()  # [G]
        labels = torch.cat([label, torch.full_like(rows, network.null_label)])
        out = network(*(torch.cat([all, all[rows]]) for all in (x, t)), labels, torch.cat([level, level[rows]]))
        conditional, unconditional = out[: len(x)], out[len(x) :]
        return conditional.index_copy(0, rows, combine(conditional[rows], unconditional, self.guidance, None))

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: MeanFlowSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B] in `settings.steps` steps.

        Each is one network evaluation, or with `guidance` two if they are the finest.

        Raises:
            ConfigError: the network knows no steps of this size.
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        level = math.log2(settings.steps)
        if level % 1 or settings.steps > self.finest:
            raise ConfigError(
                f"sampling.steps must be a power of 2 up to {self.finest} with process shortcut: got {settings.steps}"
            )
        levels = torch.full((len(label),), level, device=label.device)  # [B]

        def average(x: Tensor, t: float) -> Tensor:
            return self.velocity(network, x, torch.full_like(levels, t), levels, label)

        return walk(average, rng.normal(*spec.shape), 0.0, 1.0, settings.steps, on_step)


def state(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The state at times t [B], which keeps a trace of noise to the end, and its velocity; both [B,C,H,W]."""
    scale = 1 - _LEAST_NOISE
    return (1 - scale * as_rows(t, x)) * noise + as_rows(t, x) * x, x - scale * noise


class ShortcutConfig(Settings):
    """Shortcut models: generation in 1, 2, 4, ... steps, trained from scratch."""

    name: Literal["shortcut"] = "shortcut"
    finest: int = Field(128, ge=2, le=1024)
    """The number of finest steps, a power of 2."""
    bootstrap_share: float = Field(0.125, ge=0, le=1)
    """Share of samples that learn larger steps from two smaller ones; the others learn the finest from data."""
    guidance: NonNegativeFloat = 1.0
    """Scale of the guidance on the finest steps, which all larger ones learn from; 1 is none."""
    clip: PositiveFloat = 4.0
    """States and velocities of the small steps are kept within this distance of 0."""

    Sampling: ClassVar[type[MeanFlowSampling]] = MeanFlowSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @field_validator("finest")
    @classmethod
    def _power_of_two(cls, finest: int) -> int:
        if finest & (finest - 1):
            raise ValueError(f"must be a power of 2: got {finest}; try {2 ** (finest.bit_length() - 1)}")
        return finest

    def check(self, network: object) -> None:
        """Raises ValueError for a network that is not told of an interval."""
        takes_interval(network, self.name)

    def build(self) -> Shortcut:
        """The process."""
        return Shortcut(**self.model_dump(exclude={"name"}))
