"""Variance-preserving noise in continuous time: x = alpha(t) data + sigma(t) noise, alpha^2 + sigma^2 = 1, t in [0, 1].

Time runs from data at 0 to noise at 1. Samplers compute in float64 on the CPU, once for a grid of times.
lambda = ln(alpha / sigma) is half the logarithm of the signal-to-noise ratio ("DPM-Solver", Lu et al. 2022, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Spacing: TypeAlias = Literal["time", "time_quadratic", "log_snr", "karras"]


class Schedule(Protocol):
    """alpha as a falling function of time, through its logarithm."""

    def log_alpha(self, t: Tensor) -> Tensor:
        """ln alpha at times t [N] float64."""

    def time(self, log_alpha: Tensor) -> Tensor:
        """The times [N] of ln alpha."""


class Tabulated:
    """A discrete diffusion made continuous: ln alpha is linear between the times j/N, j = 1..N, and beyond them.

    Args:
        alpha_bar: alpha^2 after each of the N steps, falling and above 0.
    """

    def __init__(self, alpha_bar: Tensor):
        self._values = 0.5 * alpha_bar.double().log()  # [N]
        self._times = torch.arange(1, len(alpha_bar) + 1, dtype=torch.float64) / len(alpha_bar)  # [N]

    def log_alpha(self, t: Tensor) -> Tensor:
        return _interpolate(t, self._times, self._values)

    def time(self, log_alpha: Tensor) -> Tensor:
        return _interpolate(log_alpha, self._values.flip(0), self._times.flip(0))


@dataclass(frozen=True)
class Linear:
    """beta(t) linear in time (Song et al. 2021, eq. 33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def time(self, log_alpha: Tensor) -> Tensor:
        root = (self.beta_min**2 - 4 * (self.beta_max - self.beta_min) * log_alpha).sqrt()
        return -4 * log_alpha / (root + self.beta_min)


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = cos(pi/2 (t + s) / (1 + s)) over its value at 0 (Nichol & Dhariwal 2021, eq. 17).

    alpha is 0 at t = 1, where lambda is infinite: samplers begin a little before, at 0.9946.
    """

    shift: float = 0.008

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._angle(t).cos().log() - self._log_start

    def time(self, log_alpha: Tensor) -> Tensor:
        return torch.arccos((log_alpha + self._log_start).exp()) * (1 + self.shift) / (math.pi / 2) - self.shift

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.shift) / (1 + self.shift) * (math.pi / 2)

    @property
    def _log_start(self) -> float:
        return math.log(math.cos(self.shift / (1 + self.shift) * math.pi / 2))


class Level(NamedTuple):
    """The schedule at one time, as numbers."""

    t: float
    alpha: float
    sigma: float
    log_snr: float
    """lambda, so half of it."""


def levels(schedule: Schedule, t: Tensor) -> list[Level]:
    """The schedule at times t [N]."""
    log_alpha = schedule.log_alpha(t)
    columns = (t, log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt(), half_log_snr(log_alpha))
    return [Level(*values) for values in zip(*(column.tolist() for column in columns))]


def half_log_snr(log_alpha: Tensor) -> Tensor:
    """lambda of ln alpha."""
    return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))


def time_of(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """The times [N] of lambda [N]."""
    return schedule.time(-0.5 * F.softplus(-2 * log_snr))


def grid(schedule: Schedule, start: float, end: float, steps: int, spacing: Spacing = "time") -> Tensor:
    """`steps` + 1 times from `start` (noise) to `end`, float64.

    Args:
        spacing: even in time, in its square root, in lambda, or in the seventh root of sigma / alpha (Karras et al.
            2022, eq. 5).
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    ends = torch.tensor([start, end], dtype=torch.float64)

    def between(values: Tensor) -> Tensor:
        return values[0].lerp(values[1], u)  # [steps + 1]

    if spacing == "time":
        return between(ends)
    if spacing == "time_quadratic":
        return between(ends.sqrt()).square()
    log_snr = half_log_snr(schedule.log_alpha(ends))  # [2]
    inside = between(log_snr) if spacing == "log_snr" else -7 * between((-log_snr / 7).exp()).log()
    return torch.cat([ends[:1], time_of(schedule, inside[1:-1]), ends[1:]])


def refine(schedule: Schedule, times: Tensor, order: int) -> Tensor:
    """Times [N+1] with `order` - 1 more in each interval, evenly in lambda -> [N * order + 1]."""
    log_snr = half_log_snr(schedule.log_alpha(times))  # [N+1]
    share = torch.arange(1, order, dtype=torch.float64) / order  # [order-1]
    inner = time_of(schedule, torch.lerp(log_snr[:-1, None], log_snr[1:, None], share))  # [N,order-1]
    return torch.cat([torch.cat([times[:-1, None], inner], dim=1).flatten(), times[-1:]])


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through (xs, ys) at x; xs goes up, and the outermost pieces go on for ever."""
    x = x.double()
    xs, ys = xs.to(x.device), ys.to(x.device)
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    left = right - 1
    return ys[left] + (x - xs[left]) * (ys[right] - ys[left]) / (xs[right] - xs[left])
