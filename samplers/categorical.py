"""Choices among V alternatives: filters of their logits, draws from each sample's own stream, and soft draws.

A draw is argmax(logits - log e) with e ~ Exp(1) for each alternative, which is distributed as softmax(logits)
(Gumbel-max; Maddison, Tarlow & Minka 2014), so that whoever brings the e decides the outcome.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.noise import SampleRng


def exponential(rng: SampleRng, *shape: int) -> Tensor:
    """[B,*shape] float32, Exp(1), above 0."""
    return torch.log1p(-rng.uniform(*shape)).neg_().clamp_(min=2.0**-25)


def filtered(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits [...,V] with -inf for what may not be drawn.

    Args:
        top_k: keep the k largest, and what equals the last of them; 1..V, None: all.
        top_p: then keep the fewest of the largest whose shares add up to at least this (Holtzman et al. 2020); in
            (0, 1], None: all.

    Raises:
        ValueError: k is not in 1..V.
    """
    if top_k is not None and not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must lie in 1..{logits.shape[-1]}, got {top_k}")
    if top_k is None and top_p is None:
        return logits
    largest = logits.topk(top_k or logits.shape[-1], dim=-1).values  # [...,k], falling
    if top_p is not None:
        share = largest.softmax(-1)
        larger = share.cumsum(-1) - share  # of all before
        largest = largest.masked_fill(larger >= top_p, torch.inf)
    return logits.masked_fill(logits < largest.amin(-1, keepdim=True), -torch.inf)


def choose(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw from softmax(logits): logits [...,V] and Exp(1) noise of that shape -> int64 [...]."""
    return (logits - noise.log()).argmax(-1)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest: logits [...,V] -> int64 [...]."""
    return logits.argmax(-1)


def soft_choice(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """A mixture in place of a draw (Gumbel-softmax; Jang, Gu & Poole 2017): shares [...,V] that add up to 1; the lower
    the temperature, the nearer to the draw that `choose` makes."""
    return ((logits - noise.log()) / temperature).softmax(-1)
