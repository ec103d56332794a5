"""Mean flow: a network learns the average velocity over any stretch of time, and then needs one step.

"Mean Flows for One-step Generative Modeling", Geng et al. 2025 (arXiv 2505.13447). With z_t = (1 - t) x + t e and
v = e - x the average velocity u over [r, t] obeys

    u(z_t, r, t) = v - (t - r) du/dt,    du/dt = v . grad_z u + d_t u    (r fixed)

whose right side, without gradients, is the target. As in the paper, and unlike `flow`, time runs from data at t = 0 to
noise at t = 1. Networks take (z, t, label, t - r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from genlab.core.contracts import LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes.mean_flow_sampling import MeanFlowSampling, in_order, walk
from genlab.processes.paths import coefficients, interpolate
from samplers.noise import SampleRng

MeanFlowPath: TypeAlias = Literal["linear", "gvp"]
TimeLaw: TypeAlias = Literal["logit_normal", "uniform"]


@dataclass(frozen=True)
class MeanFlow(Process):
    """How times are drawn, what guidance is learnt, and how errors are weighed; see MeanFlowConfig for each field.

    Every sample draws for itself whether r = t; the paper's code takes a fixed number of rows, the first ones.
    """

    path: MeanFlowPath = "linear"
    omega: float = 1.0
    kappa: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    instant_share: float = 0.75
    time: TimeLaw = "logit_normal"
    time_mean: float = -0.4
    time_std: float = 1.0
    norm_power: float = 1.0
    norm_eps: float = 0.01

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses on one random stretch of time for each of the tokens [B,C,H,W]; see `losses_at`."""
        t, r = stretch(rng, self.instant_share, self.time, self.time_mean, self.time_std)
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_at(network, tokens, noise, t, r, label)

    def losses_at(
        self, network: Callable[..., Tensor], x: Tensor, noise: Tensor, t: Tensor, r: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Named losses [B] for data x and noise (both [B,C,H,W]) over stretches [r, t] of time ([B] each).

        "loss" is adaptively weighted (its value says little: it is near 1 for a `norm_power` of 1), "mse" is not, and
        "velocity_mse" compares with the plain velocity. Rows whose label is the null label learn without guidance.
        """
        z, v = self.state(x, noise, t)
        u = network(z, t, label, t - r)  # [B,C,H,W]
        target = self.target(bare(network), z, v, u.detach(), t, r, label)
        squares = (u - target).float().square().flatten(1)  # [B,CHW]
        return {
            "loss": adaptive(squares.sum(1), self.norm_power, self.norm_eps),
            "mse": squares.detach().mean(1),
            "velocity_mse": (u.detach() - v).float().square().flatten(1).mean(1),
        }

    def state(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state z_t and its velocity dz/dt, both [B,C,H,W], at times t [B]."""
        c = coefficients(self.path, 1 - t, x)
        return interpolate(c, x, noise), -(c.d_alpha * x + c.d_sigma * noise)

    @torch.no_grad()
    def target(self, network: Any, z: Tensor, v: Tensor, u: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        """What the average velocity should be by the identity [B,C,H,W], `u` being what the network says it is."""
        guided = self.guided_velocity(network, z, v, u, t, r, label)
        return guided - correction(network, z, guided, t, t - r, label)

    def guided_velocity(
        self, network: Any, z: Tensor, v: Tensor, u: Tensor, t: Tensor, r: Tensor, label: Tensor
    ) -> Tensor:
        """omega v + (1 - omega - kappa) v_null + kappa v_label [B,C,H,W], or v where guidance does not apply.

        v_null and v_label are the network's own velocities at an instant, h = 0. What it says already in `u`, where
        r = t, is not computed again; nor is anything for rows without guidance.
        """
        if self.omega == 1 and self.kappa == 0:
            return v
        low, high = self.guidance_interval
        applies = (label != network.null_label) & (t >= low) & (t <= high)  # [B]
        rows = applies.nonzero().flatten()  # [G]
        if len(rows) == 0:
            return v
        moving = (applies & (r < t)).nonzero().flatten() if self.kappa else rows[:0]  # [M]
        both = torch.cat([rows, moving])  # [G+M]
        labels = torch.cat([torch.full_like(rows, network.null_label), label[moving]])
        out = network(z[both], t[both], labels)  # [G+M,C,H,W]
        unconditional, conditional = out[: len(rows)], u.index_copy(0, moving, out[len(rows) :])[rows]  # 2 x [G,C,H,W]
        mixed = self.omega * v[rows] + (1 - self.omega - self.kappa) * unconditional + self.kappa * conditional
        return v.index_copy(0, rows, mixed)

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
        """Tokens [B,C,H,W] in float32 for `label` [B] in `settings.steps` network evaluations.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        h = torch.full((len(label),), 1 / settings.steps, device=label.device)  # [B]

        def average(z: Tensor, t: float) -> Tensor:
            return network(z, torch.full_like(h, t), label, h)

        return walk(average, rng.normal(*spec.shape), 1.0, 0.0, settings.steps, on_step)


def stretch(rng: SampleRng, instant_share: float, time: TimeLaw, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Ends t >= r [B] of a stretch of time for each sample: two draws from the law of times, or one twice."""
    pair = rng.uniform(2) if time == "uniform" else torch.sigmoid(mean + std * rng.normal(2))  # [B,2]
    t, r = pair.amax(1), pair.amin(1)
    return t, torch.where(rng.uniform() < instant_share, t, r)


def bare(network: Any) -> Any:
    """The network below DDP, which would count evaluations without gradients and does not know derivatives.

    Raises:
        ConfigError: its weights are sharded (FSDP), which forward derivatives do not allow.
    """
    from torch.distributed.fsdp import FSDPModule  # a second's import

    if isinstance(network, FSDPModule):
        raise ConfigError("mean flows need derivatives of a network with whole weights: use DDP in place of FSDP")
    return network.module if isinstance(network, DistributedDataParallel) else network


def derivative(
    network: Any,
    z: Tensor,
    velocity: Tensor,
    t: Tensor,
    h: Tensor,
    label: Tensor,
    conditions: Mapping[str, Tensor],
) -> Tensor:
    """du/dt [B,C,H,W] of u(z, t, label, h = t - r) along (dz, dt, dr) = (velocity, 1, 0), without gradients."""

    def average(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return network.forward(z, t, label, h, **conditions)  # not compiled, which derivatives do not pass through

    ones = torch.ones_like(t)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the only attention with forward-mode derivatives
        return torch.func.jvp(average, (z, t, h), (velocity, ones, ones))[1]


def correction(
    network: Any,
    z: Tensor,
    velocity: Tensor,
    t: Tensor,
    h: Tensor,
    label: Tensor,
    **conditions: Tensor,
) -> Tensor:
    """(t - r) du/dt [B,C,H,W], by which the velocity at t exceeds the average one; not computed where it is 0.

    Args:
        h: the lengths t - r [B].
        conditions: further arguments of the network, a row [B, ...] for each sample.
    """
    rows = h.nonzero().flatten()  # [M]
    if len(rows) == 0:
        return torch.zeros_like(z)
    given = {name: value[rows] for name, value in conditions.items()}
    change = derivative(network, z[rows], velocity[rows], t[rows], h[rows], label[rows], given)  # [M,C,H,W]
    return torch.zeros_like(z).index_copy(0, rows, as_rows(h[rows].clamp(0, 1), change) * change)


def adaptive(error: Tensor, power: float, eps: float) -> Tensor:
    """error [B] over a power of its own value, which is taken as a constant (the paper's adaptive weight)."""
    return error / (error.detach() + eps) ** power


def takes_interval(network: object, process: str) -> None:
    """Raises ValueError for a network that is not told of an interval."""
    if not getattr(network, "takes_interval", False):
        raise ValueError(f"process {process} needs network interval_dit, got {type(network).__name__}")


def as_rows(value: Tensor, x: Tensor) -> Tensor:
    """[B] in a shape that broadcasts with x [B, ...]."""
    return value.view(-1, *[1] * (x.dim() - 1))


class MeanFlowConfig(Settings):
    """Mean flow (MeanFlow): one-step generation, trained from scratch."""

    name: Literal["mean_flow"] = "mean_flow"
    path: MeanFlowPath = "linear"
    """From data to noise: linear or gvp (trigonometric)."""
    omega: NonNegativeFloat = 1.0
    """Weight of the data's velocity in the guided one; with kappa the guidance scale is omega / (1 - kappa)."""
    kappa: float = Field(0.0, ge=0, lt=1)
    """Weight of the network's own conditional velocity; the unconditional one has 1 - omega - kappa."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times (0 data, 1 noise) between which guidance is learnt."""
    instant_share: float = Field(0.75, ge=0, le=1)
    """Share of samples that learn the velocity at an instant, r = t."""
    time: TimeLaw = "logit_normal"
    """Distribution of both ends; logit_normal is sigmoid(time_mean + time_std N(0, 1))."""
    time_mean: float = -0.4
    time_std: PositiveFloat = 1.0
    norm_power: NonNegativeFloat = 1.0
    """Errors are divided by this power of themselves; 0 is the plain squared error."""
    norm_eps: PositiveFloat = 0.01
    """Added to an error before that."""

    Sampling: ClassVar[type[MeanFlowSampling]] = MeanFlowSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return in_order(interval)

    def check(self, network: object) -> None:
        """Raises ValueError for a network that is not told of an interval."""
        takes_interval(network, self.name)

    def build(self) -> MeanFlow:
        """The process."""
        return MeanFlow(**self.model_dump(exclude={"name"}))
