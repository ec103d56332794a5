"""Improved mean flow: mean flow as a regression on velocities, for any guidance that is asked for when sampling.

"Improved Mean Flows: On the Challenges of Fastforward Generative Models", Geng et al. 2025 (arXiv 2512.02012). The
identity of mean flow, solved for the velocity, V = u + (t - r) du/dt with du/dt along the network's own velocity, is
compared with a guided velocity that does not depend on u. A second head learns that velocity too. Guidance scale and
interval are drawn for each sample and told to the network. Time runs from data at t = 0 to noise at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator
from torch import Tensor

from genlab.core.contracts import LatentSpec, Network, OnStep, Process
from genlab.core.settings import Settings
from genlab.processes.mean_flow import adaptive, as_rows, bare, correction, stretch
from genlab.processes.mean_flow_sampling import MeanFlowSampling, in_order, walk
from samplers.noise import SampleRng


class Wish(NamedTuple):
    """The guidance that each sample is to be trained with."""

    scale: Tensor
    """[B], at least 1, which is none."""
    window: Tensor
    """[B,2], the times between which it applies."""

    def at(self, t: Tensor) -> Tensor:
        """The scale [B] at times t [B], 1 outside the window."""
        return torch.where((t >= self.window[:, 0]) & (t <= self.window[:, 1]), self.scale, 1.0)


@dataclass(frozen=True)
class ImprovedMeanFlow(Process):
    """How times and guidance are drawn, and how errors are weighed; see ImprovedMeanFlowConfig for each field.

    Every sample draws for itself whether r = t; the paper's code takes a fixed number of rows, the first ones.
    """

    instant_share: float = 0.5
    time_mean: float = -0.4
    time_std: float = 1.0
    guidance_max: float = 8.0
    guidance_power: float = 1.0
    norm_power: float = 1.0
    norm_eps: float = 0.01

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses on one random stretch of time for each of the tokens [B,C,H,W]; see `losses_at`."""
        t, r = stretch(rng, self.instant_share, "logit_normal", self.time_mean, self.time_std)
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        wish = self.wish(rng.uniform(3), t == r)
        return self.losses_at(network, tokens, noise, t, r, wish, label)

    def wish(self, u: Tensor, instant: Tensor) -> Wish:
        """Guidance from uniform draws u [B,3] for scale, start and end; all times are meant where `instant` [B]."""
        start = torch.where(instant, 0.0, 0.5 * u[:, 1])
        end = torch.where(instant, 1.0, 0.5 + 0.5 * u[:, 2])
        return Wish(self.scale(u[:, 0]), torch.stack([start, end], dim=1))

    def scale(self, u: Tensor) -> Tensor:
        """Guidance scales in [1, guidance_max] of density ~ scale^-guidance_power, by inversion of u [B] in [0, 1]."""
        log_max, rest = math.log(self.guidance_max), 1 - self.guidance_power
        if rest == 0:
            return torch.exp(u * log_max)
        return torch.exp(torch.log1p(u * math.expm1(rest * log_max)) / rest)

    def losses_at(
        self, network: Callable[..., Tensor], x: Tensor, noise: Tensor, t: Tensor, r: Tensor, wish: Wish, label: Tensor
    ) -> dict[str, Tensor]:
        """Named losses [B] for data x and noise (both [B,C,H,W]) over stretches [r, t] of time ([B] each).

        "loss" is the sum of the adaptively weighted errors of both heads, which are also given unweighted: "mse" and
        "velocity_mse". Rows whose label is the null label learn without guidance.
        """
        z, v = torch.lerp(x, noise, as_rows(t, x)), noise - x  # 2 x [B,C,H,W]
        told = {"guidance": wish.scale, "window": wish.window}
        average, velocity = network(z, t, label, t - r, **told, head="both").chunk(2, dim=1)  # 2 x [B,C,H,W]
        with torch.no_grad():
            inner = bare(network)
            own, guided = self.velocities(inner, z, v, velocity.detach(), t, r, wish, label)
            gap = correction(inner, z, own, t, t - r, label, **told)
        errors = [(out - guided).float().square().flatten(1) for out in (average + gap, velocity)]  # 2 x [B,CHW]
        weighted = [adaptive(error.sum(1), self.norm_power, self.norm_eps) for error in errors]
        mse, velocity_mse = (error.detach().mean(1) for error in errors)
        return {"loss": weighted[0] + weighted[1], "mse": mse, "velocity_mse": velocity_mse}

    def velocities(
        self, network: Any, z: Tensor, v: Tensor, velocity: Tensor, t: Tensor, r: Tensor, wish: Wish, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The network's own velocity and the guided one, v + (1 - 1/scale) (own - unconditional), both [B,C,H,W].

        Where r = t, the first is what it says already in `velocity`; where guidance does not apply, no second is asked.
        """
        scale = wish.at(t)  # [B]
        moving = (r < t).nonzero().flatten()  # [M]
        guided = ((label != network.null_label) & (scale > 1)).nonzero().flatten()  # [G]
        rows = torch.cat([moving, guided])
        if len(rows) == 0:
            return velocity, v
        none = torch.full_like(guided, network.null_label)
        out = network(
            z[rows],
            t[rows],
            torch.cat([label[moving], none]),
            guidance=torch.cat([scale[moving], torch.ones_like(scale[guided])]),
            head="velocity",
        )  # [M+G,C,H,W]
        own = velocity.index_copy(0, moving, out[: len(moving)])
        shift = as_rows(1 - 1 / scale[guided], z) * (own[guided] - out[len(moving) :])
        return own, v.index_add(0, guided, shift)

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: ImprovedMeanFlowSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B] in `settings.steps` network evaluations.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        h = torch.full((len(label),), 1 / settings.steps, device=label.device)  # [B]
        scale = torch.full_like(h, settings.guidance)  # [B]
        window = torch.tensor(settings.guidance_interval, device=label.device).expand(len(label), 2)  # [B,2]

        def average(z: Tensor, t: float) -> Tensor:
            return network(z, torch.full_like(h, t), label, h, scale, window)

        return walk(average, rng.normal(*spec.shape), 1.0, 0.0, settings.steps, on_step)


class ImprovedMeanFlowSampling(MeanFlowSampling):
    """Settings of improved mean flow's sampler; guidance costs no evaluations."""

    guidance: float = Field(4.0, ge=1)
    """The guidance scale that the network is told; 1 is none."""
    guidance_interval: tuple[float, float] = (0.4, 0.6)
    """The times (0 data, 1 noise) between which the network is told that guidance applies."""

    def idle(self) -> set[str]:
        return {"guidance_interval"} if self.guidance == 1 else set()

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return in_order(interval)


class ImprovedMeanFlowConfig(Settings):
    """Improved mean flow (iMF): one-step generation with guidance chosen when sampling, trained from scratch."""

    name: Literal["improved_mean_flow"] = "improved_mean_flow"
    instant_share: float = Field(0.5, ge=0, le=1)
    """Share of samples that learn the velocity at an instant, r = t."""
    time_mean: float = -0.4
    """Both ends of a stretch are sigmoid(time_mean + time_std N(0, 1))."""
    time_std: PositiveFloat = 1.0
    guidance_max: float = Field(8.0, gt=1)
    """The largest guidance scale that is trained."""
    guidance_power: NonNegativeFloat = 1.0
    """Scales have a density ~ scale^-guidance_power: 0 draws them uniformly, larger powers prefer small ones."""
    norm_power: NonNegativeFloat = 1.0
    """Errors are divided by this power of themselves; 0 is the plain squared error."""
    norm_eps: PositiveFloat = 0.01
    """Added to an error before that."""

    Sampling: ClassVar[type[ImprovedMeanFlowSampling]] = ImprovedMeanFlowSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    def check(self, network: object) -> None:
        """Raises ValueError for a network that is not told of guidance, or lacks the head for the velocity."""
        if not getattr(network, "takes_guidance", False):
            raise ValueError(f"process {self.name} needs network imf_dit, got {type(network).__name__}")

    def build(self) -> ImprovedMeanFlow:
        """The process."""
        return ImprovedMeanFlow(**self.model_dump(exclude={"name"}))
