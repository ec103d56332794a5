"""From noise to data in one or a few steps of a network that knows the average velocity over a stretch of time."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from genlab.core.contracts import OnStep, SamplingSettings
from genlab.processes.monitor import StepMonitor
from samplers import ode
from samplers.grids import uniform


class MeanFlowSampling(SamplingSettings):
    """Settings of mean flow's sampler."""

    steps: PositiveInt = 1
    """Network evaluations. Guidance is part of what the network has learnt and costs none."""


def walk(
    average: ode.Field, noise: Tensor, start: float, end: float, steps: int, on_step: OnStep | None = None
) -> Tensor:
    """The data [B,C,H,W] that `noise` leads to in equal steps, each along its `average` (x, t) -> [B,C,H,W].

    Args:
        start, end: the times of noise and data.

    Raises:
        NonFinite: a state became NaN or infinite, naming step and samples.
    """
    monitor = StepMonitor(noise, steps, on_step)

    def report(progress: ode.Progress) -> None:
        def guess() -> Tensor:
            return progress.x + (end - progress.t) * progress.velocity

        monitor.report(progress.step, progress.result, guess)

    x = ode.integrate(average, noise, uniform(start, end, steps), "euler", report)
    monitor.check()
    return x


def in_order(interval: tuple[float, float]) -> tuple[float, float]:
    """`interval` itself. Raises ValueError where it goes down."""
    low, high = interval
    if low > high:
        raise ValueError(f"an interval must go up: got ({low}, {high}); swap the two")
    return interval
