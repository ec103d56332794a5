"""Variance-preserving diffusion as DiMR uses it: trained at N discrete steps, sampled in continuous time.

"Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models", Liu et al., NeurIPS 2024 (arXiv
2406.09416), section 3.4. The network predicts the noise, at one or several resolutions. It is told the step, from 0 (no
noise) to N (nearly nothing else): whole numbers 1..N in training, real ones in sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes import schedules, vp_sampling
from genlab.processes.guidance import guide
from genlab.processes.paths import Coefficients, Time
from genlab.processes.start import Start, check_begun
from genlab.processes.vp_sampling import VpSampling, ramped
from samplers.noise import SampleRng
from samplers.vp_schedule import Level, Tabulated, levels, time_of


def pooled_noise(noise: Tensor, ratio: int) -> Tensor:
    """[B,C,H,W] -> [B,C,H/ratio,W/ratio], of unit variance: the sum over squares divided by their side."""
    return F.avg_pool2d(noise, ratio) * ratio


@dataclass(frozen=True)
class VpDiffusion(Process):
    """A noise schedule and the weights of the resolutions; see VpDiffusionConfig for each field."""

    steps: int = 1000
    schedule: schedules.ScheduleName = "scaled_linear"
    resolutions: int = 1
    resolution_weights: tuple[float, ...] | None = None

    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "strength"})

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the resolutions' losses, coarse to fine."""
        if self.resolution_weights is not None:
            return self.resolution_weights
        finest = self.resolutions - 1
        return tuple(4.0 ** ((index - finest) / max(finest, 1)) for index in range(self.resolutions))

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses at one random step for each of the tokens [B,C,H,W]; see `loss_at`."""
        step = rng.integers(self.steps) + 1  # [B]
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.loss_at(network, tokens, noise, step, label)

    def loss_at(
        self, network: Callable[..., Tensor], data: Tensor, noise: Tensor, step: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Named losses [B] for data and noise [B,C,H,W] at steps int64 [B] of 1..N.

        "loss" is the weighted sum of the resolutions' mean squared errors, which stand beside it if there are several.

        Raises:
            ConfigError: the network does not predict at so many resolutions.
        """
        x = self.noised(data, noise, step)  # [B,C,H,W]
        errors: list[Tensor] = []
        for out in self._predictions(network, x, step.float(), label):
            target = pooled_noise(noise, noise.shape[-1] // out.shape[-1])  # [B,C,h,w]
            errors.append((out.float() - target).square().flatten(1).mean(1))  # [B]
        loss = torch.stack([weight * error for weight, error in zip(self.weights, errors)]).sum(0)  # [B]
        if len(errors) == 1:
            return {"loss": loss}
        return {"loss": loss} | {f"mse_{index}": error for index, error in enumerate(errors)}

    def noised(self, data: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """The states x = alpha data + sigma noise [B,C,H,W] at steps int64 [B] of 1..N."""
        table = _table(self.schedule, self.steps, data.device).to(data.dtype)[:, step - 1]  # [2,B]
        alpha, sigma = table.view(2, -1, *[1] * (data.dim() - 1))
        return alpha * data + sigma * noise

    def continuous(self) -> Tabulated:
        """The schedule at all times, of which step n is n / N."""
        return Tabulated(schedules.alpha_bars(self.schedule, self.steps))

    def denoiser(self, network: Network, label: Tensor, settings: VpSampling) -> Callable[[Tensor, Time], Tensor]:
        """(x [B,C,H,W], t) -> the guided noise [B,C,H,W]; t is the step, a real number or [B].

        With `coefficients` and `genlab.processes.predict` it turns into data, velocity or score.
        """
        if settings.guidance_power is None:
            guided = guide(network, label, settings.as_guidance(self.steps))
        else:
            guided = ramped(network, label, settings, self.steps)
        return lambda x, t: guided(x, t)[:, : x.shape[1]]

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        """The shares of data and noise at step t, a real number or [B], in shapes that broadcast with x [B, ...].

        Their derivatives are along the angle arctan(sigma / alpha).
        """
        if isinstance(t, float):
            step = torch.tensor(t, dtype=torch.float64, device="cpu")
        else:
            step = t.double().view(-1, *[1] * (x.dim() - 1))
        log_alpha = self.continuous().log_alpha(step / self.steps)
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        if isinstance(t, Tensor):
            alpha, sigma = alpha.to(x.dtype), sigma.to(x.dtype)
        return Coefficients(alpha, sigma, -sigma, alpha)

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: VpSampling,
        on_step: OnStep | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B]; only the first state is drawn from the samples' streams.

        Args:
            start: begin from an image, with the later ones of the settings' steps.

        Raises:
            ConfigError: a start with too little noise.
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        if len(label) != len(rng):
            raise ValueError(f"as many labels as random streams are needed: got {len(label)} and {len(rng)}")
        noise_in = self.denoiser(network, label, settings)

        schedule, x, begin = self.continuous(), rng.normal(*spec.shape), 1.0  # [B,C,H,W]
        if start is not None:
            begin = min(time_of(schedule, torch.tensor([start.log_snr], dtype=torch.float64)).item(), 1.0)
            check_begun(start, begin > settings.end)
            (first,) = levels(schedule, torch.tensor([begin], dtype=torch.float64))
            x = start.state(first.alpha, first.sigma, x)

        def predict(x: Tensor, level: Level) -> Tensor:
            noise = noise_in(x, level.t * self.steps).float()
            if start is None or start.keep is None:
                return noise
            return torch.where(start.keep, (x - level.alpha * start.tokens) / level.sigma, noise)

        x = vp_sampling.run(predict, x, schedule, settings, on_step, begin)
        return x if start is None else start.hold(x)

    def _predictions(self, network: Callable[..., Any], x: Tensor, t: Tensor, label: Tensor) -> Sequence[Tensor]:
        """The noise at each resolution [B,C,h,w], coarse to fine."""
        if self.resolutions == 1:
            return [network(x, t, label)[:, : x.shape[1]]]
        try:
            outputs = network(x, t, label, every_resolution=True)
        except TypeError as error:
            if "every_resolution" not in str(error):
                raise
            raise ConfigError(
                f"process.resolutions={self.resolutions} needs a network that predicts at several resolutions, such as "
                "dimr; set it to 1 or choose another network"
            ) from error
        if len(outputs) != self.resolutions:
            raise ConfigError(
                f"process.resolutions must be the network's number of stages: got {self.resolutions} for "
                f"{len(outputs)} stages; set it to {len(outputs)}"
            )
        return outputs


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _table(schedule: schedules.ScheduleName, steps: int, device: torch.device) -> Tensor:
    """alpha and sigma of all steps, [2,N] float32 from float64, resident on `device`."""
    alpha_bar = schedules.alpha_bars(schedule, steps)
    return torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()]).to(device, torch.float32)


class VpDiffusionConfig(Settings):
    """Variance-preserving diffusion with noise predictions at one or several resolutions (DiMR)."""

    name: Literal["vp"] = "vp"
    steps: int = Field(1000, ge=2, le=100_000)
    """Steps from data to noise in training."""
    schedule: schedules.ScheduleName = "scaled_linear"
    """How noise grows: scaled_linear (latent diffusion, DiMR), linear (DDPM) or cosine (improved DDPM)."""
    resolutions: PositiveInt = 1
    """Resolutions that are trained; 1, or the number of stages of a dimr network."""
    resolution_weights: tuple[NonNegativeFloat, ...] | None = None
    """Weights of their losses, coarse to fine; by default from 1/4 to 1 in equal ratios."""

    Sampling: ClassVar[type[VpSampling]] = VpSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        weights = self.resolution_weights
        if weights is not None and len(weights) != self.resolutions:
            raise ValueError(
                f"resolution_weights needs one weight a resolution: got {len(weights)} for {self.resolutions}; "
                "give as many, or leave it out"
            )
        return self

    def check(self, network: object) -> None:
        """Raises ConfigError for a network that does not predict at so many resolutions."""
        stages = len(getattr(network, "stages", ()) or (None,))
        if self.resolutions not in (1, stages):
            raise ConfigError(
                f"process.resolutions: got {self.resolutions} for a network of {stages}; set it to {stages}, or to 1"
            )

    def build(self) -> VpDiffusion:
        """The process."""
        return VpDiffusion(**self.model_dump(exclude={"name"}))
