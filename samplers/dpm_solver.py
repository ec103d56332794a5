"""DPM-Solver and DPM-Solver++: exponential integrators of the diffusion ODE, in lambda = ln(alpha / sigma).

"DPM-Solver", Lu et al., NeurIPS 2022 (arXiv 2206.00927), predicts the noise; "DPM-Solver++", Lu et al. 2022 (arXiv
2211.01095), the clean sample. Both are one formula. With a = alpha_t, z = -h for data and a = sigma_t, z = h for noise,
h = lambda_t - lambda_s, a prediction D(lambda_s + r h) = D0 + r D1 + r^2 D2 / 2 gives

    x_t = ratio x_s - a (phi_1(z) D0 + phi_2(z) D1 + phi_3(z) D2),
    phi_1(z) = e^z - 1,  phi_2(z) = phi_1(z) / z - 1,  phi_3(z) = phi_2(z) / z - 1/2,

with ratio = sigma_t / sigma_s for data and alpha_t / alpha_s for noise. Samples do not depend on each other, except in
`adaptive`. All coefficients are numbers from float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from samplers.vp_schedule import Level, Schedule, levels, time_of

Form: TypeAlias = Literal["data", "noise"]
Rule: TypeAlias = Literal["midpoint", "taylor"]
"""How differences of predictions are used: midpoint is the papers' own choice, taylor follows the formula above."""
Model: TypeAlias = Callable[[Tensor, Level], Tensor]
"""x [B,...] at a noise level -> the clean sample or the noise in it."""
FEW_STEPS = 15
"""With fewer steps, `multistep` ends in low orders."""


class Progress(NamedTuple):
    """One update, as `on_step` receives it when it is done."""

    step: int
    """Model calls up to here."""
    steps: int
    """Model calls in all; 0 where this is not known."""
    start: Level
    """Where the update began."""
    x: Tensor
    """The state there."""
    prediction: Tensor
    """Of the model there."""
    result: Tensor
    """The state after the update."""


OnStep: TypeAlias = Callable[[Progress], None]


def group_sizes(steps: int, order: int) -> list[int]:
    """The groups of `singlestep` for `steps` intervals: of `order` (1 to 3), the last smaller; never 3 at the end.

    This is "DPM-Solver-fast" (section 3.4): the given number of model calls is spent exactly.
    """
    full, rest = divmod(steps, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + ([rest] if rest else [])


def singlestep(
    model: Model,
    x: Tensor,
    nodes: Sequence[Level],
    groups: Sequence[int],
    form: Form = "data",
    rule: Rule = "midpoint",
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at the last of N+1 `nodes`, in N model calls (DPM-Solver++, algorithm 1).

    Args:
        groups: how many intervals (1 to 3) make each update, whose inner predictions are made at the nodes between; in
            all N. See `group_sizes`.
    """
    done = 0
    for size in groups:
        group = nodes[done : done + size + 1]
        done += size
        slopes = _slopes(model, x, group, form)
        result = _combine(x, group, slopes, form, rule)
        if on_step is not None:
            on_step(Progress(done, len(nodes) - 1, group[0], x, slopes[0], result))
        x = result
    return x


def multistep(
    model: Model,
    x: Tensor,
    nodes: Sequence[Level],
    order: int = 2,
    form: Form = "data",
    rule: Rule = "midpoint",
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at the last of N+1 `nodes`, in N model calls (DPM-Solver++, algorithm 2).

    Each update takes the last `order` (1 to 3) predictions, fewer at the start, and at the end of less than FEW_STEPS.
    The third order is as published: with half of D2.
    """
    steps = len(nodes) - 1
    history: list[tuple[Level, Tensor]] = []
    for count, (start, end) in enumerate(pairwise(nodes)):
        first = model(x, start)
        h = end.log_snr - start.log_snr
        slopes = [(first - old) * (h / (start.log_snr - level.log_snr)) for level, old in reversed(history)]
        possible = min(order, count + 1, steps - count if steps < FEW_STEPS else order)
        if possible == 3:
            ratios = [(level.log_snr - start.log_snr) / h for level, _ in reversed(history)]
            slope, curve = _parabola(ratios, slopes)
            result = _advance(x, start, end, form, "taylor", first, slope, 0.5 * curve)
        else:
            result = _advance(x, start, end, form, rule, first, *slopes[: possible - 1])
        if on_step is not None:
            on_step(Progress(count + 1, steps, start, x, first, result))
        history = [*history, (start, first)][-2:]
        x = result
    return x


def adaptive(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    start: float,
    end: float,
    order: int = 3,
    form: Form = "data",
    rule: Rule = "midpoint",
    rtol: float = 0.05,
    atol: float = 0.0078,
    on_step: OnStep | None = None,
) -> Tensor:
    """The state at time `end`, in steps of order 2 or 3 that are as long as the difference to one order less allows.

    DPM-Solver, appendix C. The worst sample of the batch decides, so results depend on the batch.
    """
    ratios = [1 / 2] if order == 2 else [1 / 3, 2 / 3]
    here, last = levels(schedule, torch.tensor([start, end], dtype=torch.float64))
    h, before, calls = 0.05, x, 0
    while abs(here.t - end) > 1e-5:
        places = torch.tensor([here.log_snr + r * h for r in (*ratios, 1)], dtype=torch.float64)
        nodes = [here, *levels(schedule, time_of(schedule, places))]
        slopes = _slopes(model, x, nodes, form)
        calls += order
        lower = _combine(x, nodes, slopes[:-1], form, rule)
        higher = _combine(x, nodes, slopes, form, rule)
        allowed = (rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=atol)
        error = ((higher - lower) / allowed).flatten(1).square().mean(1).sqrt().max().item()
        if not math.isfinite(error):
            raise ArithmeticError(f"the state is not finite at t = {here.t:.4g}")
        if error <= 1:
            if on_step is not None:
                on_step(Progress(calls, 0, here, x, slopes[0], higher))
            x, before, here = higher, lower, nodes[-1]
        h = min(0.9 * h * max(error, 1e-12) ** (-1 / order), last.log_snr - here.log_snr)
    return x


def threshold(data: Tensor, quantile: float = 0.995, limit: float = 1.0) -> Tensor:
    """Clamp each sample to its `quantile` of absolute values, if that is above 1, and scale it back to `limit`.

    Dynamic thresholding (Saharia et al. 2022, section 2.3), for predicted clean pixels.
    """
    bound = torch.quantile(data.flatten(1).abs(), quantile, dim=1).clamp(min=1).view(-1, *[1] * (data.dim() - 1))
    return data.clamp(-bound, bound) * (limit / bound)


def _slopes(model: Model, x: Tensor, nodes: Sequence[Level], form: Form) -> list[Tensor]:
    """D0 at the first node, and (D(r h) - D0) / r for each inner node, where h reaches to the last node."""
    start, *inner, _ = nodes
    found = [model(x, start)]
    for node in inner:
        r, *_ = _ratios([start, node, nodes[-1]])
        guess = [r * found[-1]] if len(found) > 1 else []
        state = _advance(x, start, node, form, "taylor", found[0], *guess)
        found.append((model(state, node) - found[0]) / r)
    return found


def _ratios(nodes: Sequence[Level]) -> list[float]:
    """Where inner nodes lie between the first and the last, in lambda."""
    start, end = nodes[0].log_snr, nodes[-1].log_snr
    return [(node.log_snr - start) / (end - start) for node in nodes[1:-1]]


def _combine(x: Tensor, nodes: Sequence[Level], slopes: Sequence[Tensor], form: Form, rule: Rule) -> Tensor:
    """The state at the last node; with three predictions the midpoint rule leaves the second alone."""
    start, end = nodes[0], nodes[-1]
    if len(slopes) < 3:
        return _advance(x, start, end, form, rule, *slopes)
    if rule == "midpoint":
        return _advance(x, start, end, form, "taylor", slopes[0], slopes[2])
    return _advance(x, start, end, form, rule, slopes[0], *_parabola(_ratios(nodes), slopes[1:]))


def _parabola(ratios: Sequence[float], slopes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """D1 and D2 of the parabola with the mean slopes [r1, r2] from 0 to each ratio."""
    (r1, r2), (d1, d2) = ratios, slopes
    return (r2 * d1 - r1 * d2) / (r2 - r1), 2 * (d2 - d1) / (r2 - r1)


def _advance(
    x: Tensor,
    start: Level,
    end: Level,
    form: Form,
    rule: Rule,
    first: Tensor,
    slope: Tensor | None = None,
    curve: Tensor | None = None,
) -> Tensor:
    """The formula above; the midpoint rule has phi_1(z) / 2 in place of phi_2(z), equal to first order in z."""
    if form == "data":
        ratio, amount, z = end.sigma / start.sigma, end.alpha, start.log_snr - end.log_snr
    else:
        ratio, amount, z = end.alpha / start.alpha, end.sigma, end.log_snr - start.log_snr
    phi_1 = math.expm1(z)
    phi_2 = phi_1 / z - 1
    result = torch.add(ratio * x, first, alpha=-amount * phi_1)
    if slope is not None:
        result = torch.add(result, slope, alpha=-amount * (0.5 * phi_1 if rule == "midpoint" else phi_2))
    if curve is not None:
        result = torch.add(result, curve, alpha=-amount * (phi_2 / z - 0.5))
    return result
