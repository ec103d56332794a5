"""From noise to data along a discrete diffusion, and back: ancestral steps and DDIM.

`denoise` takes the states x [B, ...] and one step k, a number, for all of them; `noise` gives a standard normal draw of
the state's shape and is asked only where noise is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from samplers.chain import Chain, Link


class Estimate(NamedTuple):
    """What is believed of a state x_k."""

    data: Tensor
    """The clean sample [B, ...]."""
    log_variance: Tensor
    """Of x_{k-1} given x_k, in a shape that broadcasts with the data; DDIM does not read it."""


class Progress(NamedTuple):
    """One step, as `on_step` receives it when it is done."""

    step: int
    """1..steps."""
    steps: int
    data: Tensor
    """The clean sample believed in."""
    result: Tensor
    """The state after the step."""


Denoise: TypeAlias = Callable[[Tensor, int], Estimate]
Noise: TypeAlias = Callable[[], Tensor]
OnStep: TypeAlias = Callable[[Progress], None]


def posterior_mean(data: Tensor, x: Tensor, link: Link) -> Tensor:
    """The mean of q(x_{k-1} | x_k = x, data) (Ho et al. 2020, eq. 7)."""
    return link.mean_data * data + link.mean_state * x


def ancestral(denoise: Denoise, x: Tensor, chain: Chain, noise: Noise, on_step: OnStep | None = None) -> Tensor:
    """x_{k-1} ~ N(posterior mean, estimated variance) from k = N-1 down to 0, the last without noise (algorithm 2)."""

    def step(x: Tensor, estimate: Estimate, k: int) -> Tensor:
        mean = posterior_mean(estimate.data, x, chain[k])
        return mean + torch.exp(0.5 * estimate.log_variance) * noise() if k else mean

    return _run(step, denoise, x, range(len(chain) - 1, -1, -1), on_step)


def ddim(
    denoise: Denoise, x: Tensor, chain: Chain, noise: Noise, eta: float = 0.0, on_step: OnStep | None = None
) -> Tensor:
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021, eq. 12 and 16).

    Args:
        eta: share of the ancestral noise: 0 is deterministic, 1 has the posterior variance.
    """

    def step(x: Tensor, estimate: Estimate, k: int) -> Tensor:
        link = chain[k]
        spread = eta * link.posterior_variance.sqrt()
        direction = (link.sigma_prev**2 - spread**2).clamp(min=0).sqrt()
        x = link.alpha_prev * estimate.data + direction * _noise_in(x, estimate.data, link)
        return x + spread * noise() if k and eta else x

    return _run(step, denoise, x, range(len(chain) - 1, -1, -1), on_step)


def ddim_reverse(denoise: Denoise, x: Tensor, chain: Chain, on_step: OnStep | None = None) -> Tensor:
    """The deterministic way back, from data to the noise that `ddim` with eta = 0 turns into it approximately."""

    def step(x: Tensor, estimate: Estimate, k: int) -> Tensor:
        link = chain[k]
        return link.alpha_next * estimate.data + link.sigma_next * _noise_in(x, estimate.data, link)

    return _run(step, denoise, x, range(len(chain)), on_step)


def _noise_in(x: Tensor, data: Tensor, link: Link) -> Tensor:
    return (x - link.alpha * data) / link.sigma


def _run(
    step: Callable[[Tensor, Estimate, int], Tensor], denoise: Denoise, x: Tensor, ks: range, on_step: OnStep | None
) -> Tensor:
    for count, k in enumerate(ks, start=1):
        estimate = denoise(x, k)
        x = step(x, estimate, k)
        if on_step is not None:
            on_step(Progress(count, len(ks), estimate.data, x))
    return x
