"""The sampler of EDM: Heun steps between noise levels, each after a little new noise.

"Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al., NeurIPS 2022 (arXiv 2206.00364).
A state x at level sigma is data + sigma * noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Denoise: TypeAlias = Callable[[Tensor, float, float], Tensor]
"""(x [B,...], its noise level, the level where the step began) -> the expected data.

Both calls of a step are told the same beginning, so that what is decided by it (guidance) holds for the whole step.
"""


class Churn(NamedTuple):
    """New noise during the integration; the default is none."""

    amount: float = 0.0
    """Over all steps, as a share of the present noise level; a step gets at most sqrt(2) - 1."""
    lowest: float = 0.0
    """Noise levels at which there is any."""
    highest: float = math.inf
    scale: float = 1.0
    """Standard deviation of the new noise; slightly above 1 makes up for what networks remove too much."""


class Progress(NamedTuple):
    """One step, as `on_step` receives it when it is done."""

    step: int
    """1..steps."""
    steps: int
    data: Tensor
    """The expected data at the beginning."""
    result: Tensor
    """The state after the step."""


OnStep: TypeAlias = Callable[[Progress], None]
_NO_CHURN = Churn()


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    churn: Churn = _NO_CHURN,
    noise: Callable[[], Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The data [B,...] at the end of `levels` [N+1], which fall to 0; 2 N - 1 calls. x is at the first level.

    Args:
        noise: gives standard normal numbers [B,...]; called once in each step that churns, and only there.
    """
    values = levels.tolist()
    steps = len(values) - 1
    share = min(churn.amount / steps, math.sqrt(2) - 1)
    for step, (start, end) in enumerate(pairwise(values), start=1):
        here = start
        if share > 0 and churn.lowest <= start <= churn.highest:
            assert noise is not None, "churn needs noise"
            here = start * (1 + share)
            x = torch.add(x, noise().to(x.dtype), alpha=math.sqrt(here**2 - start**2) * churn.scale)
        data = denoise(x, here, start)
        slope = (x - data) / here
        result = torch.add(x, slope, alpha=end - here)
        if step < steps:
            slope = slope + (result - denoise(result, end, start)) / end
            result = torch.add(x, slope, alpha=0.5 * (end - here))
        if on_step is not None:
            on_step(Progress(step, steps, data, result))
        x = result
    return x
