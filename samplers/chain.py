"""A discrete Gaussian diffusion as tables: the noise levels of x_0 (least noise) ... x_{N-1} (most).

"Denoising Diffusion Probabilistic Models", Ho, Jain & Abbeel, NeurIPS 2020 (arXiv 2006.11239), section 2: with data x,
x_k = alpha_k x + sigma_k noise, alpha^2 + sigma^2 = 1, q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Link(NamedTuple):
    """What formulas need of step k; all of one shape, which broadcasts with the states. `prev` is k-1, `next` k+1."""

    alpha: Tensor
    sigma: Tensor
    alpha_prev: Tensor
    """1 at k = 0."""
    sigma_prev: Tensor
    alpha_next: Tensor
    """0 at k = N-1: beyond the most noisy state there is only noise."""
    sigma_next: Tensor
    beta: Tensor
    log_beta: Tensor
    posterior_variance: Tensor
    """Of q(x_{k-1} | x_k, x): beta (1 - alpha_prev^2) / (1 - alpha^2) (eq. 7)."""
    log_posterior_variance: Tensor
    """Its logarithm; at k = 0, where it is 0, the value of k = 1."""
    log_large_variance: Tensor
    """log beta; at k = 0 the logarithm of the posterior variance of k = 1."""
    mean_data: Tensor
    """The mean of q(x_{k-1} | x_k, x) is mean_data x + mean_state x_k (eq. 7)."""
    mean_state: Tensor


class Chain:
    """The links of a diffusion, in float64 one by one and in float32 on `device` for batches.

    Args:
        alpha_bar: alpha^2 for k = 0..N-1, float64 [N], falling; the last may be 0.
        timestep: what the network is told at each k, int64 [N].
        device: where batches of links are wanted.
    """

    def __init__(self, alpha_bar: Tensor, timestep: Tensor, device: torch.device | str = "cpu"):
        self._alpha_bar = alpha_bar
        self.columns = _columns(alpha_bar)  # of [N] each
        self.timesteps: list[int] = timestep.tolist()
        self._links = [Link(*values) for values in zip(*(column.unbind() for column in self.columns))]
        self._table = torch.stack(self.columns, dim=1).to(device, torch.float32)  # [N, fields]
        self._timestep = timestep.to(device)

    def __len__(self) -> int:
        return len(self._links)

    def __getitem__(self, k: int) -> Link:
        """Step k as scalars: float64 on the CPU, which multiply a tensor of any device and dtype as numbers do."""
        return self._links[k]

    def first(self, steps: int) -> Chain:
        """The `steps` links next to the data, from whose last one a noised sample can be led back."""
        if steps == len(self):
            return self
        return Chain(self._alpha_bar[:steps], self._timestep[:steps], self._table.device)

    def gather(self, k: Tensor, dims: int) -> Link:
        """Steps k [B] as float32 [B, 1, ...] of `dims` dimensions, in a single look-up."""
        return Link(*self._table[k].view(len(k), -1, *[1] * (dims - 1)).unbind(1))

    def times(self, k: Tensor) -> Tensor:
        """What the network is told at steps k [B] -> int64 [B]."""
        return self._timestep[k]


def _columns(alpha_bar: Tensor) -> Link:
    one, zero = alpha_bar.new_ones(1), alpha_bar.new_zeros(1)
    prev, following = torch.cat([one, alpha_bar[:-1]]), torch.cat([alpha_bar[1:], zero])
    beta = 1 - alpha_bar / prev
    posterior = beta * (1 - prev) / (1 - alpha_bar)
    second = posterior[1:2] if len(beta) > 1 else beta  # a chain of one step adds no noise, so any value serves
    return Link(
        alpha=alpha_bar.sqrt(),
        sigma=(1 - alpha_bar).sqrt(),
        alpha_prev=prev.sqrt(),
        sigma_prev=(1 - prev).sqrt(),
        alpha_next=following.sqrt(),
        sigma_next=(1 - following).sqrt(),
        beta=beta,
        log_beta=beta.log(),
        posterior_variance=posterior,
        log_posterior_variance=torch.cat([second, posterior[1:]]).log(),
        log_large_variance=torch.cat([second, beta[1:]]).log(),
        mean_data=beta * prev.sqrt() / (1 - alpha_bar),
        mean_state=(1 - prev) * (1 - beta).sqrt() / (1 - alpha_bar),
    )
