"""Guidance, once, for every process and sampler.

Classifier-free (Ho & Salimans 2022), away from the network's own prediction without a class; or autoguidance ("Guiding
a Diffusion Model with a Bad Version of Itself", Karras et al., NeurIPS 2024), away from a weaker network's.
"""

from __future__ import annotations

import math
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
    power: float | None = None
    """Let the scale fall from the noise to 1 at the data, for times from 0 (noise) to 1 (data); None: constant.

    scale(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2 (FiTv2); DiMR's ramp runs the other way.
    """

    def at(self, t: Tensor) -> Tensor:
        """The scale [B] at times t [B], 1 outside the interval."""
        scale = torch.full_like(t, self.scale)
        if self.power is not None:
            scale = 1 + (self.scale - 1) * 0.5 * (1 - torch.cos(math.pi * (1 - t).clamp(0, 1) ** self.power))
        low, high = self.interval
        return torch.where((t >= low) & (t <= high), scale, 1.0)


def combine(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, channels: int | None) -> Tensor:
    """unconditional + scale (conditional - unconditional) on the first `channels` channels, else conditional."""
    guided = torch.lerp(unconditional, conditional, scale)
    if channels is None or channels >= guided.shape[1]:
        return guided
    return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)


def guide(
    network: Network, label: Tensor, guidance: Guidance, weaker: Network | None = None
) -> Callable[[Tensor, Time], Tensor]:
    """(x [B,C,H,W], t) -> the guided output of `network` [B,C',H,W] for `label` [B].

    The conditional and unconditional passes run as one batch of 2B, but callers hold B rows. With one time for the
    batch nothing is computed twice outside the interval; with times [B] each row obeys the interval for itself. A scale
    of 1, and any scale for an unconditional network without a weaker one, is a single pass.

    Args:
        weaker: predicts what is guided away from, for the same labels or without any if it knows none; by default
            `network` does, told that there is no class.
    """
    if guidance.scale == 1.0 or (weaker is None and network.num_classes == 0):
        return lambda x, t: network(x, rows(t, x), label)
    low, high = guidance.interval
    labels = torch.cat([label, torch.full_like(label, network.null_label)])  # [2B]

    def both(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The output to guide to and the one to guide away from, each [B,C',H,W]."""
        if weaker is not None:
            return network(x, times, label), weaker(x, times, label if weaker.num_classes else torch.zeros_like(label))
        strong, weak = network(torch.cat([x, x]), times.repeat(2), labels).chunk(2)
        return strong, weak

    def predict(x: Tensor, t: Time) -> Tensor:
        times = rows(t, x)  # [B]
        if not isinstance(t, Tensor) and not low <= t <= high:
            return network(x, times, label)
        strong, weak = both(x, times)
        scale: float | Tensor = guidance.scale
        if isinstance(t, Tensor) or guidance.power is not None:
            scale = guidance.at(times).view(-1, *[1] * (x.dim() - 1)).to(strong.dtype)
        channels = x.shape[1] if guidance.channels is None else guidance.channels
        return combine(strong, weak, scale, channels)

    return predict


def rows(t: Time, x: Tensor) -> Tensor:
    """The times [B] of the B samples of x."""
    return t if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=torch.float32, device=x.device)
