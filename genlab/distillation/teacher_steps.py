"""Steps along a teacher's probability flow, on the path x = alpha data + sigma noise of any process.

Along the flow dx = data d(alpha) + noise d(sigma), with the data and noise that the teacher sees in x. Euler's rule on
this is a step of DDIM (Song et al. 2021), whatever the path; the trapezoid rule is Heun's, on EDM's path that of EDM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from genlab.core.contracts import Network
from genlab.processes.levels import Levels, translate
from samplers.noise import spawn

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(states [B,C,H,W], levels [B]) -> the data in them."""
Solver: TypeAlias = Literal["euler", "heun"]


def denoiser(levels: Levels, network: Callable[..., Tensor], label: Tensor) -> Predict:
    """The predictions of `network`, which speaks in `levels`, for `label` [B]."""
    return lambda x, t: levels.data(network(*levels.inputs(x, t), label), x, t)


def guided(own: Levels, network: Network, label: Tensor, guidance: float, levels: Levels) -> Predict:
    """The guided predictions of a teacher, which speaks in its `own` levels, for states at `levels`; no gradients."""

    @torch.no_grad()
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return own.denoise(network, *translate(x, t, levels, own), label, guidance).float()

    return predict


def grid(levels: Levels, count: int, teacher: Levels | None = None) -> Tensor:
    """The `count` + 1 levels from noise to data between which there are `count` steps, as the process numbers them.

    Args:
        teacher: where it speaks in other levels, none is noisier than its noisiest.
    """
    one = torch.empty(1)
    last = levels.draw(spawn(0, [0]), 0.0, 0.0)
    points = torch.cat([*(levels.times(t, one) for t in levels.spread(count)), last])
    if teacher is None or teacher.language == levels.language:
        return points
    limit = teacher.noisiness(teacher.spread(1)[0])
    noisiness = ratio(levels, points)
    return torch.where(noisiness > limit, levels.time_of(noisiness.clamp(max=limit)), points)


def step(solver: Solver, levels: Levels, predict: Predict, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The states [B,C,H,W] at levels `there` [B] of x at `here`, which is noisier; one call or (heun) two."""
    a, b = levels.coefficients(here, x), levels.coefficients(there, x)
    data = predict(x, here)
    noise = levels.noise(data, x, here)
    end = b.alpha * data + b.sigma * noise
    if solver == "euler":
        return end
    data_there = predict(end, there)
    noise_there = (end - b.alpha * data_there) / torch.where(b.sigma > 0, b.sigma, 1.0)
    data_mean, noise_mean = 0.5 * (data + data_there), 0.5 * (noise + noise_there)
    second = x + (b.alpha - a.alpha) * data_mean + (b.sigma - a.sigma) * noise_mean
    return torch.where(b.sigma > 0, second, end)  # no slope can be had at the data itself


def implied_data(levels: Levels, x: Tensor, z: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The prediction of the data at (x, here) with which one step of euler leads to (z, there).

    "Progressive Distillation for Fast Sampling of Diffusion Models", Salimans & Ho, ICLR 2022.
    """
    a, b = levels.coefficients(here, x), levels.coefficients(there, x)
    share = b.sigma / a.sigma
    return (z - share * x) / (b.alpha - share * a.alpha)


def ratio(levels: Levels, t: Tensor) -> Tensor:
    """sigma / alpha [B] at levels t [B]; infinite for pure noise."""
    c = levels.coefficients(t, t)
    return c.sigma / c.alpha
