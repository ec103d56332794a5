"""Ordinary differential equations dx/dt = f(x, t): explicit Runge-Kutta steps on a time grid, and adaptive steps.

`f` takes the states x [B, ...] and one time, a number, for all of them. Grids may run up or down.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Field: TypeAlias = Callable[[Tensor, float], Tensor]


class Progress(NamedTuple):
    """One step, as `on_step` receives it when it is done."""

    step: int
    """1..steps."""
    steps: int
    t: float
    """Where the step began."""
    x: Tensor
    """The state there."""
    velocity: Tensor
    """dx/dt there."""
    result: Tensor
    """The state after the step."""


OnStep: TypeAlias = Callable[[Progress], None]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method (Butcher 1964)."""

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS = {
    "euler": Tableau((0,), ((),), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),  # the explicit trapezoid
    "rk4": Tableau(  # Kutta's 3/8 rule, smaller in error than the classical method
        (0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    ),
}


def integrate(f: Field, x: Tensor, grid: Tensor, method: str = "euler", on_step: OnStep | None = None) -> Tensor:
    """The state at the end of `grid` [N+1], in N steps of `method`, one of TABLEAUS.

    No evaluation lies outside the grid, and each sample is on its own: its result does not depend on the batch.
    """
    tableau = TABLEAUS[method]
    times = grid.tolist()
    for step, (t, end) in enumerate(pairwise(times), start=1):
        slopes: list[Tensor] = []
        for node, row in zip(tableau.nodes, tableau.matrix):
            here = end if node == 1 else t + node * (end - t)
            slopes.append(f(_advance(x, end - t, row, slopes), here))
        result = _advance(x, end - t, tableau.weights, slopes)
        if on_step is not None:
            on_step(Progress(step, len(times) - 1, t, x, slopes[0], result))
        x = result
    return x


def _advance(x: Tensor, dt: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """x + dt * (the weighted sum of slopes)."""
    for weight, slope in zip(weights, slopes):
        if weight:
            x = torch.add(x, slope, alpha=dt * weight)
    return x


def adaptive(
    f: Field, x: Tensor, grid: Tensor, method: str = "dopri5", rtol: float = 1e-3, atol: float = 1e-6
) -> Tensor:
    """The state at the end of `grid` [N+1], in steps that torchdiffeq chooses; the last ends there.

    The error is controlled over all of x together, so a sample's result depends on the others; integrate one by one
    where that matters. f is never asked for a time outside the grid.

    Args:
        method: an adaptive method of torchdiffeq, such as dopri5 (Dormand & Prince 1980).

    Raises:
        ArithmeticError: the step size fell to nothing or the state is not finite.
    """
    from torchdiffeq import odeint

    low, high = sorted([grid[0].item(), grid[-1].item()])

    def field(t: Tensor, state: Tensor) -> Tensor:  # the first step size is chosen by a probe that may go too far
        return f(state, min(max(t.item(), low), high))

    end = grid[-1:].to(x.device)
    try:
        states = odeint(field, x, grid.to(x.device), rtol=rtol, atol=atol, method=method, options={"step_t": end})
    except AssertionError as error:  # torchdiffeq's way of giving up
        raise ArithmeticError(f"{method} gave up: {str(error).splitlines()[0]}") from error
    return states[-1]
