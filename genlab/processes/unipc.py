"""UniPC through diffusers' scheduler, on any path from noise to data.

"UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", Zhao et al., NeurIPS 2023 (arXiv
2302.04867): a multistep exponential integrator like DPM-Solver++ whose every step is corrected, at no further network
call, by the prediction that the next one needs anyway.

States x = alpha data + sigma noise of all paths become one another's by a factor. The scheduler gets them as those of
the straight path, y = x / (alpha + sigma), which holds both ends: s = sigma / (alpha + sigma) is 1 for noise, 0 for
data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from samplers.dpm_solver import FEW_STEPS

_ALMOST_NOISE = 1 - 1e-6
"""s of pure noise, whose signal-to-noise ratio would otherwise have no logarithm."""


OnStep: TypeAlias = Callable[[int, Tensor, Tensor], None]
"""(1..N, the state after this step, the clean sample predicted where it began) -> None."""


def unipc(
    data: Callable[[Tensor, int], Tensor],
    x: Tensor,
    levels: Sequence[tuple[float, float]],
    order: int = 2,
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at the last of N+1 `levels`, in N calls; samples of a batch do not depend on each other.

    Args:
        data: (x [B,...], k) -> the clean sample in states at level k.
        x: states at the first level.
        levels: (alpha, sigma) with falling sigma / alpha; the first alpha and the last sigma may be 0.
        order: 1 to 3, less at the start and, where there are less than FEW_STEPS or the end is clean, at the end.
    """
    from diffusers import UniPCMultistepScheduler

    steps = len(levels) - 1
    shares = [min(sigma / (alpha + sigma), _ALMOST_NOISE) for alpha, sigma in levels]
    scheduler: Any = UniPCMultistepScheduler(
        solver_order=order,
        prediction_type="sample",
        use_flow_sigmas=True,
        lower_order_final=steps < FEW_STEPS or shares[-1] == 0,
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    scheduler.timesteps = torch.arange(steps)
    scheduler.sigmas = torch.tensor(shares, dtype=torch.float64)  # ours in place of the scheduler's own, not rounded
    for k, (level, following) in enumerate(pairwise(levels)):
        predicted = data(x, k)
        x = scheduler.step(predicted, k, x / sum(level), return_dict=False)[0] * sum(following)
        if on_step is not None:
            on_step(k + 1, x, predicted)
    return x
