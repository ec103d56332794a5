"""The likelihood of data under a probability flow.

"FFJORD", Grathwohl et al. 2019, section 3.1: the log-density changes along the flow by the divergence of the velocity,
estimated with Hutchinson's random probes. As in SiT each evaluation has a probe of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.ode import integrate


def log_likelihood(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    grid: Tensor,
    probe: Callable[[], Tensor],
    method: str = "euler",
) -> tuple[Tensor, Tensor]:
    """log p(x) [B] in nats over all dimensions, and the noise [B,...] that x flows back to.

    Args:
        x: data [B, ...].
        grid: times from data (near 1) down to noise (near 0).
        probe: random signs of the shape of x, +1 or -1.
        method: one of samplers.ode.TABLEAUS.
    """

    def field(state: Tensor, t: float) -> Tensor:
        here = state[:, :-1].view_as(x)
        v, divergence = _with_divergence(velocity, here, t, probe())
        return torch.cat([v.flatten(1), divergence[:, None]], dim=1)

    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)  # the state and the integral of the divergence
    state = integrate(field, state, grid, method)
    noise = state[:, :-1]
    return gaussian_log_density(noise) + state[:, -1], noise.view_as(x)


def gaussian_log_density(x: Tensor) -> Tensor:
    """log N(x; 0, I) over all but the first axis -> [B]."""
    x = x.flatten(1)
    return -0.5 * (x.square().sum(1) + x.shape[1] * math.log(2 * math.pi))


def _with_divergence(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, t: float, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity [B,...] at x and probe . (d velocity / dx) . probe [B]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t)
        (gradient,) = torch.autograd.grad((v * probe).sum(), x)
    return v.detach(), (gradient * probe).flatten(1).sum(1)
