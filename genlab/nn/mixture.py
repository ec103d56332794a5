"""Mixtures of Gaussians whose many means are low-rank functions of few features.

The output of "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", Kim et al., ICML 2025
(arXiv 2412.10208): weights, means, and one scale and shift for the whole mixture. How the low rank comes in is our
reading; the paper's code is not public.

Letters: N leading axes, K components, R rank, C channels, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mixture(NamedTuple):
    """sum_k pi_k N(z; s mu_k + b, diag(s^2)), where mu_k = bases_k^T factors. All float32."""

    logits: Tensor
    """[N,K], of pi."""
    factors: Tensor
    """[N,R+1], the first of which is 1: its bases are the means' constant parts."""
    log_scale: Tensor
    """[N,C], log s."""
    shift: Tensor
    """[N,C], b."""
    bases: Tensor
    """[K,R+1,C]."""
    gram: Tensor
    """[K,R+1,R+1], bases bases^T of each component."""

    def log_weights(self) -> Tensor:
        """log pi [N,K]."""
        return self.logits.log_softmax(-1)

    def log_densities(self, z: Tensor) -> Tensor:
        """log N_k(z) [N,K] of z [N,C], without forming the K means of each: two matrix products.

        |u - mu_k|^2 = |u|^2 - 2 (factors x u).bases_k + (factors x factors).gram_k, with u = (z - b) / s.
        """
        u = (z - self.shift) * (-self.log_scale).exp()  # [N,C]
        outer = (self.factors.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)  # [N,(R+1)C]
        square = (self.factors.unsqueeze(-1) * self.factors.unsqueeze(-2)).flatten(-2)  # [N,(R+1)^2]
        distances = F.linear(square, self.gram.flatten(1)) - 2 * F.linear(outer, self.bases.flatten(1))  # [N,K]
        constant = u.square().sum(-1) + 2 * self.log_scale.sum(-1) + z.shape[-1] * math.log(2 * math.pi)  # [N]
        return -0.5 * (distances + constant.unsqueeze(-1))

    def points(self, component: Tensor, noise: Tensor) -> Tensor:
        """s (mu_k + noise) + b [N,C] for chosen components int64 [N] and noise [N,C]."""
        mean = (self.factors.unsqueeze(-2) @ self.bases[component]).squeeze(-2)  # [N,C]
        return self.log_scale.exp() * (mean + noise) + self.shift


class MixtureTerms(NamedTuple):
    """Parts of losses of a mixture, [N] each."""

    nll: Tensor
    """-log p(z)."""
    classification: Tensor
    """-sum_k q_k log pi_k, where q = softmax(log N_k(z)) leaves the weights aside."""
    regression: Tensor
    """-log sum_k N_k(z): as if all components were equally likely, so that none dies of a small weight.

    With the classification an upper bound of the negative log-likelihood.
    """


def mixture_terms(log_weights: Tensor, log_densities: Tensor, detached: bool = True) -> MixtureTerms:
    """The parts of the losses for log pi and log N(z), [N,K] each.

    Args:
        detached: the classification teaches the weights alone; otherwise also the components, through q.
    """
    q = (log_densities.detach() if detached else log_densities).softmax(-1)
    return MixtureTerms(
        -(log_weights + log_densities).logsumexp(-1), -(q * log_weights).sum(-1), -log_densities.logsumexp(-1)
    )


def components(bases: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Bases [K,R,C] and constant parts of the means [K,C] -> what a `Mixture` has: bases and gram."""
    whole = torch.cat([means.unsqueeze(1), bases], dim=1)  # [K,R+1,C]
    return whole, whole @ whole.mT


class MixtureHead(nn.Module):
    """Features [N,D] -> a `Mixture`, computed in float32 whatever the autocast.

    Args:
        log_scales: least and largest log s, in units of the target. Where that is one of few points, s would go to 0
            without a least one.
    """

    def __init__(self, width: int, channels: int, count: int, rank: int, log_scales: tuple[float, float] = (-7.0, 2.0)):
        super().__init__()
        self.log_scales = log_scales
        self.logits = nn.Linear(width, count)
        self.factors = nn.Linear(width, rank, bias=False)
        self.affine = nn.Linear(width, 2 * channels)
        self.bases = nn.Parameter(torch.randn(count, rank, channels) * 0.02)
        self.means = nn.Parameter(torch.randn(count, channels))
        for layer in (self.logits, self.affine):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.factors.weight)

    @torch.no_grad()
    def start(self, means: Tensor, spread: Tensor) -> None:
        """Begin with means [K,C], in units of the target, and all scales at `spread` []."""
        least, largest = self.log_scales
        spread = spread.clamp(math.exp(least), math.exp(largest))
        self.means.copy_(means / spread)
        self.affine.bias[: means.shape[1]] = spread.log()

    def forward(
        self, h: Tensor, unit: Tensor, floor: float = -math.inf, shared: tuple[Tensor, Tensor] | None = None
    ) -> Mixture:
        """The mixture of vectors whose standard deviation is about `unit` [N], which is 1 to the parameters.

        Args:
            floor: least log s where that is more than the head's own.
            shared: what `components` gave for the parameters, if it is at hand.
        """
        with torch.autocast(h.device.type, enabled=False):
            h, unit = h.float(), unit.unsqueeze(-1)
            log_scale, shift = self.affine(h).chunk(2, dim=-1)  # 2 x [N,C]
            log_scale = log_scale.clamp(*self.log_scales) + unit.log()
            g = self.factors(h)  # [N,R]
            factors = torch.cat([torch.ones_like(g[..., :1]), g], dim=-1)
            bases, gram = shared or components(self.bases, self.means)
            return Mixture(self.logits(h), factors, log_scale.clamp_min(floor), shift * unit, bases, gram)
