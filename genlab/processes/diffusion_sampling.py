"""How a discrete diffusion samples: its settings, and the samplers that they choose between."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from genlab.core.contracts import OnStep, SamplingSettings
from genlab.processes.acceleration import CacheSettings
from genlab.processes.guidance import Guidance
from genlab.processes.monitor import StepMonitor
from genlab.processes.schedules import RESPACING
from genlab.processes.unipc import unipc
from samplers import ddpm
from samplers.chain import Chain
from samplers.noise import SampleRng


class DiffusionSampling(SamplingSettings):
    """Settings of a diffusion's samplers."""

    sampler: Literal["ddpm", "ddim", "unipc"] = "ddim"
    """ddpm (ancestral, adds noise at every step), ddim (with eta 0 deterministic, good with few steps) or unipc
    (deterministic, of high order: best with very few steps)."""
    steps: int = Field(50, ge=2)
    """Network calls, spread evenly over the diffusion's own steps, both ends included; for unipc the end at the data is
    not, from which extrapolation would reach too far."""
    respacing: str = ""
    """Choose the steps otherwise, in place of `steps`: ddim50 takes every n-th from the clean end on, trailing50 every
    n-th from the noise on, 10,15,20 cuts the diffusion into three sections."""
    eta: float = Field(0.0, ge=0, le=1)
    """Noise of ddim, as a share of the ancestral noise."""
    order: Literal[1, 2, 3] = 2
    """Of unipc; 3 gains where guidance is small."""
    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance; 1 is none and costs half."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Between which times (0 noise, 1 data) guidance applies; outside, a step costs half."""
    guidance_channels: NonNegativeInt | None = None
    """Guide only the first so many latent channels (3 in the published DiT numbers); by default all."""
    clip_denoised: bool = False
    """Clamp each step's predicted clean sample to [-1, 1]; for pixels, never for latents."""
    cache: CacheSettings = CacheSettings()
    """Reuse of a transformer's features between steps: faster, and only close to the exact samples."""

    @property
    def spacing(self) -> str:
        """The steps to keep, as `schedules.respace` reads it."""
        return self.respacing or (f"trailing{self.steps}" if self.sampler == "unipc" else str(self.steps))

    def idle(self) -> set[str]:
        return {"order"} if self.sampler != "unipc" else set()

    def as_guidance(self, steps: int) -> Guidance:
        """The guidance fields together, in the unit of a network that is told 0..steps-1, from data to noise."""
        low, high = self.guidance_interval
        return Guidance(self.guidance, ((1 - high) * steps, (1 - low) * steps), self.guidance_channels)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval must go up: got ({low}, {high}); swap the two")
        if RESPACING.fullmatch(self.respacing) is None:
            raise ValueError(f"respacing is written ddim50, trailing50, 250 or 10,15,20: got {self.respacing!r}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta belongs to ddim: got eta {self.eta} with {self.sampler}; set it to 0")
        return self


def run(
    denoise: ddpm.Denoise, x: Tensor, chain: Chain, settings: DiffusionSampling, rng: SampleRng, on_step: OnStep | None
) -> Tensor:
    """From the noise x [B,C,H,W] to samples, by the sampler of `settings`. Raises NonFinite."""
    monitor = StepMonitor(x, len(chain), on_step)

    def watch(progress: ddpm.Progress) -> None:
        monitor.report(progress.step, progress.result, lambda: progress.data)

    def noise() -> Tensor:
        return rng.normal(*x.shape[1:])

    match settings.sampler:
        case "ddpm":
            x = ddpm.ancestral(denoise, x, chain, noise, watch)
        case "ddim":
            x = ddpm.ddim(denoise, x, chain, noise, settings.eta, watch)
        case "unipc":
            x = _unipc(denoise, x, chain, settings.order, monitor)
    monitor.check()
    return x


def _unipc(denoise: ddpm.Denoise, x: Tensor, chain: Chain, order: int, monitor: StepMonitor) -> Tensor:
    """From the chain's last link over all others to clean data."""
    last = len(chain) - 1
    levels = [(chain[last - k].alpha.item(), chain[last - k].sigma.item()) for k in range(len(chain))]
    return unipc(lambda x, k: denoise(x, last - k).data, x, [*levels, (1.0, 0.0)], order, monitor.follow)
