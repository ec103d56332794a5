"""The stochastic differential equation of a flow, dX = (v + D s) dt + sqrt(2 D) dW, on a time grid.

v is the velocity, s the score and D(t) >= 0 a diffusion coefficient of free choice. `field` gives (v, s) from one
network call; `noise` gives a standard normal draw of the state's shape. SiT (Ma et al. 2024), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

from torch import Tensor

from samplers.ode import OnStep, Progress

Field: TypeAlias = Callable[[Tensor, float], tuple[Tensor, Tensor]]
Diffusion: TypeAlias = Callable[[float], float]
LastStep: TypeAlias = Literal["mean", "euler", "tweedie", "none"]


def euler_maruyama(
    field: Field,
    diffusion: Diffusion,
    x: Tensor,
    grid: Tensor,
    noise: Callable[[], Tensor],
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at the end of `grid` [N+1], one field evaluation and one draw a step (Maruyama 1955)."""
    times = grid.tolist()
    for step, (t, end) in enumerate(pairwise(times), start=1):
        velocity, score = field(x, t)
        dt, d = end - t, diffusion(t)
        result = x + (velocity + d * score) * dt + math.sqrt(2 * d * dt) * noise()
        if on_step is not None:
            on_step(Progress(step, len(times) - 1, t, x, velocity, result))
        x = result
    return x


def heun(
    field: Field,
    diffusion: Diffusion,
    x: Tensor,
    grid: Tensor,
    noise: Callable[[], Tensor],
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at the end of `grid` [N+1]: noise first, then a trapezoid of the drift; two evaluations a step.

    Follows Karras et al. (2022, algorithm 2) in adding the step's noise before its drift.
    """
    times = grid.tolist()
    for step, (t, end) in enumerate(pairwise(times), start=1):
        dt = end - t
        noised = x + math.sqrt(2 * diffusion(t) * dt) * noise()
        velocity, score = field(noised, t)
        drift = velocity + diffusion(t) * score
        velocity_end, score_end = field(noised + dt * drift, end)
        drift_end = velocity_end + diffusion(end) * score_end
        result = noised + 0.5 * dt * (drift + drift_end)
        if on_step is not None:
            on_step(Progress(step, len(times) - 1, t, noised, velocity, result))
        x = result
    return x


def finish(
    rule: LastStep, x: Tensor, velocity: Tensor, score: Tensor, data: Tensor, diffusion: float, size: float
) -> Tensor:
    """The noiseless last step of `size`, over the stretch before t = 1 where scores are unbounded (SiT, table 10).

    Args:
        data: the prediction of the clean sample at x, which is the Tweedie rule's answer.
    """
    match rule:
        case "mean":
            return x + (velocity + diffusion * score) * size
        case "euler":
            return x + velocity * size
        case "tweedie":
            return data
        case "none":
            return x
