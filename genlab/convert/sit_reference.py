"""What SiT's reference code does and genlab's product does not, for its golden files.

Its intervals ignore some of what the user sets, it guides three channels while evolving both halves of a doubled batch,
its adaptive solver takes one step size for the whole batch and runs past the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS

from genlab.processes.guidance import combine
from genlab.processes.paths import default_eps, interval
from samplers.ode import Field

GUIDED_CHANNELS = 3


def reference_interval(
    path: str,
    prediction: str,
    train_eps: float | None = None,
    sample_eps: float | None = None,
    sde: bool = False,
    eval: bool = False,
    reverse: bool = False,
    diffusion_form: str = "",
    last_step_size: float = 0.0,
) -> tuple[float, float]:
    """The interval of times for training (no flag), ODE sampling (eval), or SDE sampling (sde).

    Velocities on linear and GVP paths have no eps whatever the user sets, and a `sample_eps` alone is ignored. The
    diffusion form changes nothing beyond that.
    """
    name = path.lower()
    defaults = default_eps(name, prediction)  # type: ignore[arg-type]
    if train_eps is None or defaults == (0.0, 0.0):
        train_eps, sample_eps = defaults
    eps = sample_eps if eval or sde else train_eps
    if eps is None:
        raise ValueError("the reference has no sampling interval when only train_eps is given")
    start, end = interval(name, eps)  # type: ignore[arg-type]
    if sde and last_step_size:
        end = 1 - last_step_size
    return (1 - start, 1 - end) if reverse else (start, end)


def diffusion_form(name: str) -> str:
    """The reference's name of a diffusion form, one of which it misspells, as ours."""
    return name.lower().replace("inccreasing", "increasing")


def guided_rows(network: Callable[..., Tensor], x: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
    """The guided forward of 2n rows, which reads the first n; the channels that are not guided stay each half's own.

    x, t and labels have 2n rows, the second half of the labels being null -> all of the network's channels [2n,C',H,W].
    """
    first = x[: len(x) // 2]
    out = network(torch.cat([first, first]), t, labels)  # [2n,C',H,W]
    conditional, unconditional = out.chunk(2)
    guided = combine(conditional, unconditional, scale, None)[:, :GUIDED_CHANNELS]
    return torch.cat([torch.cat([guided, guided]), out[:, GUIDED_CHANNELS:]], dim=1)


def torchdiffeq(
    field: Field, x: Tensor, grid: Tensor, method: str, rtol: float, atol: float, evaluations: Tensor | None
) -> Tensor:
    """The states on `grid` [points] -> [points, ...], by any method of torchdiffeq.

    The choice of adaptive steps amplifies rounding (dopri5 with float32 states: 1e-3 of the result), so where the times
    of the reference's `evaluations` are known, its accepted steps are taken again.
    """

    def at(t: Tensor, state: Tensor) -> Tensor:
        return field(state, t.item())

    if evaluations is None or not hasattr(SOLVERS[method], "tableau"):
        return odeint(at, x, grid, rtol=rtol, atol=atol, method=method)
    # The solver accepts any step and wishes for very long ones, so each is cut at the next prescribed time.
    options = {"step_t": _accepted(evaluations, len(SOLVERS[method].tableau.alpha)), "first_step": 1e6, "ifactor": 1e30}
    return odeint(at, x, grid, rtol=1e30, atol=1e30, method=method, options=options)


def _accepted(evaluations: Tensor, stages: int) -> Tensor:
    """The ends of the accepted steps, and one more far away, so that the last step is cut like the others.

    Two evaluations choose the first step size. Then each attempt makes `stages`, the last of them at its end, and after
    a rejection the next attempt ends earlier.
    """
    ends = evaluations[2:].view(-1, stages)[:, -1]
    sign = torch.sign(ends[-1] - evaluations[0])
    accepted = torch.cat([sign * ends.diff() > 0, torch.tensor([True])])
    return torch.cat([ends[accepted], ends[-1:] + sign * 1e3])
