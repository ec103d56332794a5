"""How a flow samples: its settings, and the three ways from noise to data that they choose between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from genlab.core.contracts import Event, OnStep, SamplingSettings
from genlab.core.errors import NonFinite
from genlab.processes.acceleration import CacheSettings
from genlab.processes.guidance import Guidance
from genlab.processes.monitor import StepMonitor
from genlab.processes.paths import Form, PathName, coefficients, diffusion
from genlab.processes.predict import to_data, to_score
from genlab.processes.unipc import unipc
from samplers import ode, sde
from samplers.grids import later, uniform
from samplers.noise import SampleRng

Velocity = Callable[[Tensor, float], Tensor]


class FlowSampling(SamplingSettings):
    """Settings of a flow's samplers."""

    sampler: Literal["euler", "heun", "midpoint", "rk4", "unipc", "dopri5", "euler_maruyama", "sde_heun"] = "heun"
    """For the ODE: euler, heun, midpoint, rk4 (1, 2, 2 and 4 network calls a step), unipc (1, and of high order) or
    dopri5 (adaptive). For the SDE: euler_maruyama, sde_heun (1 and 2)."""
    steps: PositiveInt = 25
    """Steps, not grid points; of an SDE this includes the last step. dopri5 finds its own."""
    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance; 1 is none and costs half."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times (0 noise, 1 data) between which guidance applies; outside, a step costs half."""
    guidance_channels: NonNegativeInt | None = None
    """Guide only the first so many latent channels (3 in the published DiT and SiT numbers); by default all."""
    guidance_power: PositiveFloat | None = None
    """Let guidance fall from its scale at the noise to none at the data, later for smaller powers (FiTv2); by default
    it is the same at all times."""
    shift: PositiveFloat = 1.0
    """Below 1: more of the steps near the noise; above 1: near the data."""
    order: Literal[1, 2, 3] = 2
    """Of unipc."""
    rtol: PositiveFloat = 1e-3
    """Relative error that dopri5 allows itself."""
    atol: PositiveFloat = 1e-6
    """Absolute error that dopri5 allows itself."""
    diffusion: Form = "sigma"
    """Noise of the SDE over time; every form has the same solution if the network is exact."""
    diffusion_norm: PositiveFloat = 1.0
    """Amount of that noise."""
    last_step: sde.LastStep = "mean"
    """How the SDE crosses its last stretch without noise; none leaves it out and goes to the end with noise."""
    last_step_size: float = Field(0.04, gt=0, lt=1)
    """Length in time of that stretch."""
    cache: CacheSettings = CacheSettings()
    """Reuse of a transformer's features between steps: faster, and only close to the exact samples; for euler, unipc
    and euler_maruyama."""

    def idle(self) -> set[str]:
        idle = {"steps", "shift"} if self.sampler == "dopri5" else {"rtol", "atol"}
        if self.sampler != "unipc":
            idle.add("order")
        if not self.is_stochastic:
            idle |= {"diffusion", "diffusion_norm", "last_step", "last_step_size"}
        elif self.last_step == "none":
            idle.add("last_step_size")
        return idle | ({"guidance_interval", "guidance_channels", "guidance_power"} if self.guidance == 1 else set())

    @property
    def is_stochastic(self) -> bool:
        """It integrates an SDE."""
        return self.sampler in ("euler_maruyama", "sde_heun")

    def as_guidance(self) -> Guidance:
        """The guidance fields together."""
        return Guidance(self.guidance, self.guidance_interval, self.guidance_channels, self.guidance_power)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval must go up: got ({low}, {high}); swap the two")
        if self.is_stochastic and self.last_step != "none" and self.steps < 2:
            raise ValueError(
                "an SDE with a last step needs at least 2 steps: got 1; raise steps or set last_step to none"
            )
        if self.sampler == "sde_heun" and self.last_step == "none":
            raise ValueError("sde_heun needs a last step (the score is infinite at the end): got none; set it to mean")
        if self.cache.kind != "none" and self.sampler not in ("euler", "unipc", "euler_maruyama"):
            raise ValueError(
                f"a cache needs one network call a step: got {self.sampler}; set sampler to euler or cache.kind to none"
            )
        return self


class Monitor(StepMonitor):
    """Follows an integration along a path and shows the predicted clean samples."""

    def __init__(self, path: PathName, x: Tensor, steps: int, on_step: OnStep | None):
        super().__init__(x, steps, on_step)
        self._path = path

    def __call__(self, progress: ode.Progress) -> None:
        def data() -> Tensor:
            c = coefficients(self._path, progress.t, progress.x)
            return to_data("velocity", progress.velocity, progress.x, c)

        self.report(progress.step, progress.result, data)


def deterministic(
    path: PathName,
    velocity: Velocity,
    x: Tensor,
    interval: tuple[float, float],
    settings: FlowSampling,
    rng: SampleRng,
    on_step: OnStep | None,
    begin: float | None = None,
) -> Tensor:
    """The probability flow in fixed steps, or in those after the time `begin`; draws nothing from `rng`."""
    grid = uniform(*interval, settings.steps, settings.shift)
    if begin is not None:
        grid = later(grid, begin)
    monitor = Monitor(path, x, len(grid) - 1, on_step)
    if settings.sampler == "unipc":
        x = _unipc(path, velocity, x, grid.tolist(), settings.order, monitor)
    else:
        x = ode.integrate(velocity, x, grid, settings.sampler, monitor)
    monitor.check()
    return x


def _unipc(
    path: PathName, velocity: Velocity, x: Tensor, times: Sequence[float], order: int, monitor: StepMonitor
) -> Tensor:
    at = [coefficients(path, t, x) for t in times]

    def data(x: Tensor, k: int) -> Tensor:
        return to_data("velocity", velocity(x, times[k]), x, at[k])

    return unipc(data, x, [(c.alpha.item(), c.sigma.item()) for c in at], order, monitor.follow)


def stochastic(
    path: PathName,
    velocity: Velocity,
    x: Tensor,
    interval: tuple[float, float],
    settings: FlowSampling,
    rng: SampleRng,
    on_step: OnStep | None,
    begin: float | None = None,
) -> Tensor:
    """The SDE in fixed steps, or in those after the time `begin`, with one network call for drift and score; then its
    last step.
    """
    start, end = interval
    rule, size = settings.last_step, settings.last_step_size
    noisy_steps = settings.steps - (rule != "none")
    grid = uniform(start, end if rule == "none" else 1 - size, noisy_steps, settings.shift)
    if begin is not None:
        size = min(size, 1 - begin)
        grid = later(grid, begin) if begin < grid[-1] else grid.new_tensor([begin])
    steps = len(grid) - 1 + (rule != "none")
    earliest = grid[:2][-1].item()

    def strength(t: float) -> float:
        """D(t). Where "sbdm" is infinite, or too stiff for the first step, it keeps its value from that step's end."""
        at = torch.tensor(max(t, earliest) if settings.diffusion == "sbdm" else t, dtype=torch.float64, device="cpu")
        return diffusion(settings.diffusion, at, coefficients(path, at.item(), x), settings.diffusion_norm).item()

    def field(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        v = velocity(x, t)
        return v, to_score("velocity", v, x, coefficients(path, t, x))

    monitor = Monitor(path, x, steps, on_step)
    integrate = sde.euler_maruyama if settings.sampler == "euler_maruyama" else sde.heun
    x = integrate(field, strength, x, grid, lambda: rng.normal(*x.shape[1:]), monitor)
    if rule != "none":
        t = grid[-1].item()
        v, score = field(x, t)
        data = to_data("velocity", v, x, coefficients(path, t, x))
        result = sde.finish(rule, x, v, score, data, strength(t), size)
        monitor(ode.Progress(steps, steps, t, x, v, result))
        x = result
    monitor.check()
    return x


def one_by_one(
    velocities: Sequence[Velocity],
    x: Tensor,
    interval: tuple[float, float],
    settings: FlowSampling,
    on_step: OnStep | None,
) -> Tensor:
    """Adaptive steps, each sample [1,C,H,W] with its own; after each, `on_step` sees the batch with it finished."""
    grid = torch.tensor(interval, dtype=torch.float64)
    x = x.clone()
    for row, velocity in enumerate(velocities):
        try:
            x[row] = ode.adaptive(velocity, x[row : row + 1], grid, "dopri5", settings.rtol, settings.atol)[0]
        except ArithmeticError as error:
            raise NonFinite(
                f"sampling failed in sample {row} of the batch: {error}; try sampler heun, or less guidance"
            ) from error
        if on_step is not None:
            on_step(Event(row + 1, len(x), x.clone()))
    if not x.isfinite().all():
        bad = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        raise NonFinite(f"sampling became non-finite in samples {bad} of the batch; the network may have diverged")
    return x
