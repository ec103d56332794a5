"""How a variance-preserving diffusion samples: its settings, and the DPM-Solvers that they choose between."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor

from genlab.core.contracts import Network, OnStep, SamplingSettings
from genlab.processes.guidance import Guidance, combine, rows
from genlab.processes.monitor import StepMonitor
from genlab.processes.paths import Time
from genlab.processes.unipc import unipc
from samplers import dpm_solver
from samplers.grids import later
from samplers.vp_schedule import Level, Schedule, Spacing, grid, levels


class VpSampling(SamplingSettings):
    """Settings of a variance-preserving diffusion's samplers."""

    sampler: Literal["dpm_singlestep", "dpm_multistep", "unipc"] = "dpm_singlestep"
    """dpm_singlestep, as DiMR publishes (order 3, 250 steps), dpm_multistep, which forgets no prediction, or unipc,
    which also corrects its steps."""
    steps: int = Field(50, ge=2)
    """Network calls."""
    order: Literal[1, 2, 3] = 3
    """Of the solver; 2 is the usual choice for dpm_multistep and unipc."""
    solve_for: Literal["data", "noise"] = "data"
    """The prediction that is taken to change little: data (DPM-Solver++) or noise (DPM-Solver)."""
    rule: dpm_solver.Rule = "midpoint"
    """How the solver extrapolates: midpoint, as published, or taylor."""
    spacing: Spacing = "time"
    """Where steps are even: in time, time_quadratic (its root), log_snr or karras."""
    end: float = Field(1e-3, gt=0, lt=0.5)
    """Time at which the solver stops; noise begins at 1."""
    denoise: bool = False
    """Spend the last network call on removing the noise that is left at the end."""
    threshold: bool = False
    """Dynamic thresholding of predicted clean samples to [-1, 1]; for pixels, never for latents."""
    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance; 1 is none and costs half. DiMR's published 0.4 is 1.4 here."""
    guidance_power: PositiveFloat | None = None
    """Let guidance grow from none at the noise to its scale at the data, later for larger powers; by default it is
    the same at all times."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Between which times (0 noise, 1 data) guidance applies; outside, a step costs half."""
    guidance_channels: NonNegativeInt | None = None
    """Guide only the first so many latent channels; by default all."""

    def idle(self) -> set[str]:
        idle = {"rule"} if self.order == 1 or self.sampler == "unipc" else set()
        return idle | ({"guidance_power", "guidance_interval", "guidance_channels"} if self.guidance == 1 else set())

    def as_guidance(self, steps: int) -> Guidance:
        """The guidance fields together but for the power, in the unit of a network told 0..steps, data first."""
        low, high = self.guidance_interval
        return Guidance(self.guidance, ((1 - high) * steps, (1 - low) * steps), self.guidance_channels)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval must go up: got ({low}, {high}); swap the two")
        if self.sampler == "unipc" and self.solve_for == "noise":
            raise ValueError("unipc solves for data: got solve_for noise; set it to data")
        if self.threshold and self.solve_for == "noise":
            raise ValueError("threshold acts on predicted clean samples: got solve_for noise; set it to data")
        return self


def ramped(network: Network, label: Tensor, settings: VpSampling, steps: int) -> Callable[[Tensor, Time], Tensor]:
    """(x [B,C,H,W], t) -> the output of `network` guided by a scale that grows as t falls from `steps` to 0.

    scale = 1 + (guidance - 1) (1 - cos(pi u^power)) / 2 with u = 1 - t / steps, in MDT (Gao et al. 2023) and DiMR.
    """
    if settings.guidance == 1 or network.num_classes == 0:
        return lambda x, t: network(x, rows(t, x), label)
    guidance = settings.as_guidance(steps)
    labels = torch.cat([label, torch.full_like(label, network.null_label)])  # [2B]
    power = settings.guidance_power or 1.0

    def predict(x: Tensor, t: Time) -> Tensor:
        times = rows(t, x)  # [B]
        both = network(torch.cat([x, x]), times.repeat(2), labels)  # [2B,C',H,W]
        conditional, unconditional = both.chunk(2)  # 2 x [B,C',H,W]
        share = 0.5 * (1 - torch.cos(math.pi * (1 - times / steps).clamp(min=0) ** power))  # [B]
        inside = (times >= guidance.interval[0]) & (times <= guidance.interval[1])  # [B]
        scale = 1 + torch.where(inside, (guidance.scale - 1) * share, 0.0).view(-1, *[1] * (x.dim() - 1))
        channels = x.shape[1] if guidance.channels is None else guidance.channels
        return combine(conditional, unconditional, scale.to(both.dtype), channels)

    return predict


def run(
    noise_in: Callable[[Tensor, Level], Tensor],
    x: Tensor,
    schedule: Schedule,
    settings: VpSampling,
    on_step: OnStep | None,
    begin: float = 1.0,
) -> Tensor:
    """From the noise x [B,C,H,W] to samples, by the solver of `settings`. Raises NonFinite.

    Args:
        noise_in: the network's guided prediction of the noise in x.
        begin: time of x, if it is not all noise; only the settings' steps after it are made.
    """
    times = grid(schedule, 1.0, settings.end, settings.steps - settings.denoise, settings.spacing)
    nodes = levels(schedule, later(times, begin))
    steps = len(nodes) - 1 + settings.denoise
    monitor = StepMonitor(x, steps, on_step)

    def data_of(x: Tensor, noise: Tensor, level: Level) -> Tensor:
        data = (x - level.sigma * noise) / level.alpha
        return dpm_solver.threshold(data) if settings.threshold else data

    def model(x: Tensor, level: Level) -> Tensor:
        noise = noise_in(x, level)
        return noise if settings.solve_for == "noise" else data_of(x, noise, level)

    def watch(progress: dpm_solver.Progress) -> None:
        def data() -> Tensor:
            if settings.solve_for == "data":
                return progress.prediction
            return data_of(progress.x, progress.prediction, progress.start)

        monitor.report(progress.step, progress.result, data)

    match settings.sampler:
        case "dpm_singlestep":
            groups = dpm_solver.group_sizes(len(nodes) - 1, settings.order)
            x = dpm_solver.singlestep(model, x, nodes, groups, settings.solve_for, settings.rule, watch)
        case "dpm_multistep":
            x = dpm_solver.multistep(model, x, nodes, settings.order, settings.solve_for, settings.rule, watch)
        case "unipc":
            ends = [(node.alpha, node.sigma) for node in nodes]
            x = unipc(lambda x, k: model(x, nodes[k]), x, ends, settings.order, monitor.follow)
    if settings.denoise:
        x = data_of(x, noise_in(x, nodes[-1]), nodes[-1])
        monitor.report(steps, x, lambda: x)
    monitor.check()
    return x
