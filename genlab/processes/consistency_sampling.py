"""How consistency models sample: predict the data, put noise on it again, predict it anew.

"Consistency Models", Song et al., ICML 2023 (arXiv 2303.01469), algorithm 1. States are data + sigma noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, SamplingSettings
from genlab.processes.edm import Edm
from genlab.processes.monitor import StepMonitor
from genlab.processes.start import Start
from samplers.noise import SampleRng


class ConsistencySampling(SamplingSettings):
    """Settings of the multistep sampler. Noise levels are in the unit of the data."""

    levels: tuple[PositiveFloat, ...] = Field((80.0,), min_length=1)
    """Noise levels of the network's calls, falling; the first is where samples begin. One level is one step."""
    sigma_min: NonNegativeFloat = 0.002
    """Noise that data is taken to have, so that less is added: sqrt(level^2 - sigma_min^2)."""
    clip: bool = False
    """Clamp each prediction to [-1, 1]; for pixels."""

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if any(low >= high for high, low in zip(self.levels, self.levels[1:])) or self.levels[-1] <= self.sigma_min:
            raise ValueError(
                f"levels must fall and stay above sigma_min={self.sigma_min:g}: got {list(self.levels)}; order them"
            )
        return self


@dataclass(frozen=True)
class Renoising(Edm):
    """States and scalings of EDM, sampled in one step or a few."""

    takes_weaker: ClassVar[bool] = False
    edits: ClassVar[frozenset[EditKind]] = frozenset()

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: Any,
        on_step: OnStep | None = None,
        weaker: Network | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B], all noise from the samples' own streams; algorithm 1.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        assert isinstance(settings, ConsistencySampling), "sampling settings of another process"
        first = rng.normal(*spec.shape) * settings.levels[0]  # [B,C,H,W]
        monitor = StepMonitor(first, len(settings.levels), on_step)

        def predict(x: Tensor, sigma: float) -> Tensor:
            data = self.denoise(network, x, torch.full((len(x),), sigma, device=x.device), label)[0]
            return data.clamp(-1, 1) if settings.clip else data

        noise = (rng.normal(*spec.shape) for _ in settings.levels)
        data = first
        for step, data in enumerate(renoised(predict, first, settings.levels, noise, settings.sigma_min), start=1):
            monitor.report(step, data, lambda: data)  # noqa: B023 (called at once)
        monitor.check()
        return data


def renoised(
    predict: Callable[[Tensor, float], Tensor],
    x: Tensor,
    levels: Sequence[float],
    noise: Iterator[Tensor],
    sigma_min: float,
) -> Iterator[Tensor]:
    """The predictions [B,...] from x at the first of the falling noise `levels`, one for each; algorithm 1.

    Args:
        predict: (state, noise level) -> the data.
        noise: standard normal numbers [B,...], one draw for each level but the first.
    """
    for number, level in enumerate(levels):
        if number:
            x = x + math.sqrt(max(level**2 - sigma_min**2, 0.0)) * next(noise)
        x = predict(x, level)
        yield x
