"""Classifier-free guidance (Ho & Salimans 2022), once, for every process and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.core.contracts import Network
from genlab.processes.paths import Time


@dataclass(frozen=True)
class Guidance:
    """How strongly, when and where the condition is exaggerated."""

    scale: float = 1.0
    """1 is the plain conditional prediction, 0 the unconditional one."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times, ends included and in the network's unit, at which it applies (Kynkäänniemi et al. 2024)."""
    channels: int | None = None
    """Only the first so many channels are guided, the others stay conditional; None: as many as the state has, so that
    a network's variances are never guided.

    The published DiT and SiT numbers guide 3 of 4 channels.
    """


def combine(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, channels: int | None) -> Tensor:
    """unconditional + scale (conditional - unconditional) on the first `channels` channels, else conditional."""
    guided = torch.lerp(unconditional, conditional, scale)
    if channels is None or channels >= guided.shape[1]:
        return guided
    return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)


def guide(network: Network, label: Tensor, guidance: Guidance) -> Callable[[Tensor, Time], Tensor]:
    """(x [B,C,H,W], t) -> the guided output of `network` [B,C',H,W] for `label` [B].

    The conditional and unconditional passes run as one batch of 2B, but callers hold B rows. With one time for the
    batch nothing is doubled outside the interval; with times [B] each row obeys the interval for itself. A scale of 1,
    and any scale for an unconditional network, is a single pass.
    """
    if guidance.scale == 1.0 or network.num_classes == 0:
        return lambda x, t: network(x, rows(t, x), label)
    low, high = guidance.interval
    labels = torch.cat([label, torch.full_like(label, network.null_label)])  # [2B]

    def predict(x: Tensor, t: Time) -> Tensor:
        scale: float | Tensor = guidance.scale
        if isinstance(t, Tensor):
            inside = (t >= low) & (t <= high)  # [B]
            scale = torch.where(inside, guidance.scale, 1.0).view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        elif not low <= t <= high:
            return network(x, rows(t, x), label)
        both = network(torch.cat([x, x]), rows(t, x).repeat(2), labels)  # [2B,C',H,W]
        conditional, unconditional = both.chunk(2)  # 2 x [B,C',H,W]
        channels = x.shape[1] if guidance.channels is None else guidance.channels
        return combine(conditional, unconditional, scale, channels)

    return predict


def rows(t: Time, x: Tensor) -> Tensor:
    """The times [B] of the B samples of x."""
    return t if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=torch.float32, device=x.device)
