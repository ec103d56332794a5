"""Every conversion between what networks predict: data, noise, velocity and score. SiT (Ma et al. 2024), section 2.2.

At a state x = alpha x1 + sigma x0 the four are tied by

    velocity = alpha' x1 + sigma' x0        score = -x0 / sigma

so each can be had from any other where the path allows the division: from data or to score needs sigma > 0, from noise
or score to data or velocity needs alpha > 0. Coefficients broadcast with x.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from genlab.processes.paths import Coefficients

Prediction: TypeAlias = Literal["data", "noise", "velocity", "score"]


def to_data(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients) -> Tensor:
    """x1. From a score this is Tweedie's formula."""
    match kind:
        case "data":
            return value
        case "noise":
            return (x - c.sigma * value) / c.alpha
        case "score":
            return (x + c.sigma**2 * value) / c.alpha
        case "velocity":
            return (c.sigma * value - c.d_sigma * x) / c.determinant


def to_noise(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients) -> Tensor:
    """x0."""
    match kind:
        case "data":
            return (x - c.alpha * value) / c.sigma
        case "noise":
            return value
        case "score":
            return -c.sigma * value
        case "velocity":
            return (c.d_alpha * x - c.alpha * value) / c.determinant


def to_velocity(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients) -> Tensor:
    """dx/dt of the probability flow."""
    if kind == "velocity":
        return value
    return c.d_alpha * to_data(kind, value, x, c) + c.d_sigma * to_noise(kind, value, x, c)


def to_score(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients) -> Tensor:
    """The gradient of log p_t."""
    return value if kind == "score" else -to_noise(kind, value, x, c) / c.sigma
