"""Interpolant paths from noise to data: x_t = alpha(t) x1 + sigma(t) x0, with x0 noise at t = 0 and x1 data at t = 1.

"SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers", Ma et al., ECCV 2024
(arXiv 2401.08740), sections 2 and 3; the paper's time runs the other way. Each formula is written so that it stays
exact at the ends of [0, 1] as far as it is defined there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from samplers.vp_schedule import Linear, time_of

PathName: TypeAlias = Literal["linear", "gvp", "vp"]
FlowPrediction: TypeAlias = Literal["velocity", "score", "noise"]
Form: TypeAlias = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
Time: TypeAlias = Tensor | float
"""A time for each sample [B], or one number for the whole batch (which costs no device synchronisation)."""


class Coefficients(NamedTuple):
    """A path at some times; all of the shape of the times."""

    alpha: Tensor
    """Share of the data."""
    sigma: Tensor
    """Share of the noise."""
    d_alpha: Tensor
    """d alpha / dt."""
    d_sigma: Tensor
    """d sigma / dt."""

    @property
    def determinant(self) -> Tensor:
        """alpha' sigma - alpha sigma' > 0: of the system that gives data and noise from state and velocity."""
        return self.d_alpha * self.sigma - self.alpha * self.d_sigma

    @property
    def score_gain(self) -> Tensor:
        """sigma (alpha' sigma - alpha sigma') / alpha: the velocity is (alpha'/alpha) x + this times the score."""
        return self.sigma * self.determinant / self.alpha


def linear(t: Tensor) -> Coefficients:
    """alpha = t, sigma = 1 - t (rectified flow)."""
    one = torch.ones_like(t)
    return Coefficients(t, 1 - t, one, -one)


def gvp(t: Tensor) -> Coefficients:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): the variance is preserved."""
    alpha, sigma = torch.sin(0.5 * math.pi * t), torch.sin(0.5 * math.pi * (1 - t))
    return Coefficients(alpha, sigma, 0.5 * math.pi * sigma, -0.5 * math.pi * alpha)


def vp(t: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Coefficients:
    """ln alpha = -u^2 (beta_max - beta_min)/4 - u beta_min/2 with u = 1 - t, sigma^2 = 1 - alpha^2 (Song et al. 2021).

    sigma' is infinite at t = 1.
    """
    u = 1 - t
    log_alpha = -0.25 * (beta_max - beta_min) * u**2 - 0.5 * beta_min * u
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    d_alpha = 0.5 * (beta_min + u * (beta_max - beta_min)) * alpha
    return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


PATHS: dict[str, Callable[[Tensor], Coefficients]] = {"linear": linear, "gvp": gvp, "vp": vp}


def coefficients(path: PathName, t: Time, x: Tensor) -> Coefficients:
    """The path at `t`, in shapes that broadcast with x [B, ...].

    A number gives scalars in float64 on the CPU, which multiply a tensor of any device and dtype as numbers do.
    """
    if isinstance(t, float):
        return PATHS[path](torch.tensor(t, dtype=torch.float64, device="cpu"))
    return PATHS[path](t.view(-1, *[1] * (x.dim() - 1)))


def time_at(path: PathName, log_snr: float) -> float:
    """The time of ln(alpha / sigma) = `log_snr`, which is -infinity for noise alone; vp, where this is out of reach,
    begins with a little more than that at 0.
    """
    match path:
        case "linear":
            return 1 / (1 + math.exp(-log_snr)) if log_snr > -math.inf else 0.0
        case "gvp":
            return math.atan2(math.exp(log_snr), 1) * 2 / math.pi
        case "vp":
            u = time_of(Linear(), torch.tensor([max(log_snr, -50.0)], dtype=torch.float64)).item()
            return max(1 - u, 0.0)


def default_eps(path: PathName, prediction: FlowPrediction) -> tuple[float, float]:
    """How far training and sampling stay from the ends at which path or prediction are undefined."""
    if path == "vp":
        return 1e-5, 1e-3
    return (0.0, 0.0) if prediction == "velocity" else (1e-3, 1e-3)


def interval(path: PathName, eps: float) -> tuple[float, float]:
    """The times [eps, 1 - eps]; VP, whose alpha is positive at 0, begins there."""
    return (0.0 if path == "vp" else eps), 1.0 - eps


def interpolate(c: Coefficients, x1: Tensor, x0: Tensor) -> Tensor:
    """The state x_t = alpha x1 + sigma x0 (SiT eq. 1)."""
    return c.alpha * x1 + c.sigma * x0


def diffusion(form: Form, t: Tensor, c: Coefficients, norm: float = 1.0) -> Tensor:
    """The coefficient D(t) of the SDE dX = (v + D score) dt + sqrt(2 D) dW (SiT eq. 4; the paper's w is 2 D).

    Any D >= 0 gives the same marginals if the score is exact. "sbdm" is infinite where alpha is 0.
    """
    match form:
        case "constant":
            return norm * torch.ones_like(t)
        case "sbdm":
            return norm * c.score_gain
        case "sigma":
            return norm * c.sigma
        case "linear":
            return norm * (1 - t)
        case "decreasing":
            return 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2
        case "increasing-decreasing":
            return norm * torch.sin(math.pi * t) ** 2
