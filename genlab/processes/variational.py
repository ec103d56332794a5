"""The terms of the variational bound of a discrete diffusion, in bits per dimension.

Ho et al. (2020, eq. 5) and Nichol & Dhariwal (2021, section 3); the first step's decoder is meant for 8-bit pixels in
[-1, 1] and is applied to latents as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samplers.chain import Link
from samplers.ddpm import Estimate, posterior_mean

_HALF_BIN = 1 / 255
"""Half the distance of neighbouring 8-bit values in [-1, 1]."""


def bound_term(estimate: Estimate, data: Tensor, x: Tensor, link: Link, first: Tensor) -> Tensor:
    """What step k adds to the bound on -log2 p(data) -> [B].

    Args:
        estimate: of the states x [B, ...] at step k.
        data: the clean samples [B, ...].
        first: bool [B], where k = 0: the likelihood of the data instead of a divergence of posteriors.
    """
    mean = posterior_mean(estimate.data, x, link)
    truth = posterior_mean(data, x, link)
    divergence = gaussian_kl(truth, link.log_posterior_variance, mean, estimate.log_variance)
    likelihood = discretised_log_likelihood(data, mean, estimate.log_variance)
    return torch.where(first, -_bits(likelihood), _bits(divergence))


def prior_term(data: Tensor, last: Link) -> Tensor:
    """How far q(x_{N-1} | data) is from pure noise -> [B]."""
    log_variance = last.sigma.square().log()
    return _bits(gaussian_kl(last.alpha * data, log_variance, torch.zeros_like(data), torch.zeros_like(log_variance)))


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2)) of each dimension, in nats."""
    change = log_variance2 - log_variance1
    return 0.5 * (change - 1 + torch.exp(-change) + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretised_log_likelihood(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The log probability of each value's bin under a Gaussian, in nats; the outermost bins reach to infinity.

    Ho et al. 2020, eq. 13; the normal distribution function is Page's (1977) approximation by a tanh.
    """
    precision = torch.exp(-0.5 * log_variance)
    above = _normal_cdf((data - mean + _HALF_BIN) * precision)
    below = _normal_cdf((data - mean - _HALF_BIN) * precision)
    inner = torch.where(data > 0.999, 1 - below, above - below)
    return torch.where(data < -0.999, above, inner).clamp(min=1e-12).log()


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _bits(nats: Tensor) -> Tensor:
    """[B, ...] -> the mean over dimensions [B], in bits."""
    return nats.flatten(1).mean(1) / math.log(2)
