"""How EDM samples: its settings, and the guidance that may hold at some noise levels only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from genlab.core.contracts import Network, OnStep, SamplingSettings
from genlab.processes.monitor import StepMonitor
from samplers import edm
from samplers.grids import karras, later
from samplers.noise import SampleRng


class EdmSampling(SamplingSettings):
    """Settings of the sampler of EDM. Noise levels are in the unit of the data."""

    steps: PositiveInt = 18
    """Of two network calls each, but for the last."""
    sigma_max: PositiveFloat = 80.0
    """Noise level of the beginning."""
    sigma_min: PositiveFloat = 0.002
    """The last noise level before 0."""
    rho: PositiveFloat = 7.0
    """Larger: more of the steps at small noise levels."""
    churn: NonNegativeFloat = 0.0
    """New noise over all steps; 0 is deterministic. EDM's ImageNet-64 has 40 with 256 steps."""
    churn_interval: tuple[NonNegativeFloat, NonNegativeFloat] = (0.05, 50.0)
    """Noise levels between which there is new noise."""
    churn_noise: PositiveFloat = 1.003
    """Standard deviation of the new noise."""
    guidance: float = Field(1.0, ge=0)
    """Scale of guidance, away from "no class" or from a weaker network; 1 is none and costs half."""
    guidance_interval: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 1e9)
    """Noise levels between which a step must begin for guidance to apply; outside, it costs half."""

    def idle(self) -> set[str]:
        idle = {"churn_interval", "churn_noise"} if self.churn == 0 else set()
        return idle | ({"guidance_interval"} if self.guidance == 1 else set())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max: got {self.sigma_min:g} and {self.sigma_max:g}")
        for key in ("churn_interval", "guidance_interval"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} must go up: got ({low:g}, {high:g}); swap the two")
        return self


def guided(
    denoise: Callable[[Network, Tensor, float, Tensor], Tensor],
    network: Network,
    label: Tensor,
    settings: EdmSampling,
    weaker: Network | None = None,
) -> edm.Denoise:
    """The expected data under guidance: D' + guidance (D - D'), where D' belongs to the weaker of two predictions.

    Args:
        denoise: (network, x [B,C,H,W], noise level, label [B]) -> the expected data.
        weaker: predicts D', for the same labels ("Guiding a Diffusion Model with a Bad Version of Itself", Karras et
            al. 2024) or without any if it knows none; by default `network` does, told that there is no class, in the
            same call.
    """
    low, high = settings.guidance_interval
    plain = settings.guidance == 1 or (weaker is None and network.num_classes == 0)

    def call(x: Tensor, sigma: float, start: float) -> Tensor:
        if plain or not low <= start <= high:
            return denoise(network, x, sigma, label)
        if weaker is None:
            labels = torch.cat([label, torch.full_like(label, network.null_label)])  # [2B]
            strong, weak = denoise(network, torch.cat([x, x]), sigma, labels).chunk(2)
        else:
            strong = denoise(network, x, sigma, label)
            weak = denoise(weaker, x, sigma, label if weaker.num_classes else torch.zeros_like(label))
        return torch.lerp(weak, strong, settings.guidance)

    return call


def run(
    denoise: edm.Denoise,
    x: Tensor,
    settings: EdmSampling,
    rng: SampleRng,
    on_step: OnStep | None = None,
    begin: float | None = None,
) -> Tensor:
    """From states x [B,C,H,W] at the noise level `begin`, by default the settings' highest, to samples. Raises
    NonFinite.
    """
    levels = karras(settings.sigma_max, settings.sigma_min, settings.steps, settings.rho)
    if begin is not None:
        levels = later(levels, begin)
    monitor = StepMonitor(x, len(levels) - 1, on_step)
    churn = edm.Churn(settings.churn, *settings.churn_interval, settings.churn_noise)

    def watch(progress: edm.Progress) -> None:
        monitor.report(progress.step, progress.result, lambda: progress.data)

    x = edm.heun(denoise, x, levels, churn, lambda: rng.normal(*x.shape[1:]), watch)
    monitor.check()
    return x
