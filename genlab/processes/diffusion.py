"""Discrete Gaussian diffusion: train a network to undo the noise of one of T steps, and undo them one after another.

"Denoising Diffusion Probabilistic Models", Ho et al. 2020; learned variances are "Improved Denoising Diffusion
Probabilistic Models", Nichol & Dhariwal 2021 (arXiv 2102.09672), as in DiT. Step k runs from 0 (nearly data) to T - 1
(nearly noise) and enters the network as this number, also when sampling skips steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes import diffusion_sampling, schedules
from genlab.processes.acceleration import caching
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.guidance import guide
from genlab.processes.paths import Coefficients, Time
from genlab.processes.predict import to_data, to_noise
from genlab.processes.start import Start
from genlab.processes.variational import bound_term, prior_term
from genlab.processes.weighting import Weighting, loss_weight
from samplers import ddpm
from samplers.chain import Chain, Link
from samplers.ddpm import Estimate
from samplers.noise import SampleRng

DiffusionPrediction: TypeAlias = Literal["noise", "data", "velocity"]
Variance: TypeAlias = Literal["fixed_small", "fixed_large", "learned_range"]


class Bound(NamedTuple):
    """The variational bound on -log2 p(data), in bits per dimension; steps are ordered from noise to data."""

    total: Tensor
    """[B]: the sum of the rest."""
    prior: Tensor
    """[B]."""
    terms: Tensor
    """[B, steps]."""
    data_error: Tensor
    """[B, steps]: mean squared error of the predicted clean sample."""
    noise_error: Tensor
    """[B, steps]: of the predicted noise."""


def angular(link: Link) -> Coefficients:
    """A step in the terms of `genlab.processes.predict`, with the angle arctan(sigma / alpha) for time.

    The velocity along it is v = alpha noise - sigma data (Salimans & Ho 2022, appendix D).
    """
    return Coefficients(link.alpha, link.sigma, -link.sigma, link.alpha)


@dataclass(frozen=True)
class Diffusion(Process):
    """A noise schedule, what the network predicts, the variance of its steps and the loss; see DiffusionConfig."""

    steps: int = 1000
    schedule: schedules.ScheduleName = "linear"
    zero_terminal_snr: bool = False
    prediction: DiffusionPrediction = "noise"
    variance: Variance = "fixed_small"
    objective: Literal["mse", "kl"] = "mse"
    bound_weight: float = 1.0
    weighting: Weighting = "none"
    weighting_gamma: float | None = None

    takes_weaker: ClassVar[bool] = True
    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "strength"})

    def chain(self, respacing: str = "", device: torch.device | str = "cpu") -> Chain:
        """The tables, reduced to the steps that `respacing` keeps ("": all). Raises ConfigError."""
        return schedules.chain(self.schedule, self.steps, self.zero_terminal_snr, respacing, torch.device(device))

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses at one random step for each of the tokens [B,C,H,W]; see `loss_at`."""
        step = rng.integers(self.steps)  # [B]
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.loss_at(network, tokens, noise, step, label)

    def loss_at(
        self,
        network: Callable[..., Tensor],
        data: Tensor,
        noise: Tensor,
        step: Tensor,
        label: Tensor,
        respacing: str = "",
    ) -> dict[str, Tensor]:
        """Named losses [B] for data and noise [B,C,H,W] at steps [B] of the chain that `respacing` keeps.

        "loss" alone, or with learned variances its parts too: "mse" of the prediction, and "bound", the step's term of
        the variational bound, which trains nothing but the variance (Nichol & Dhariwal 2021, eq. 16). The objective
        "kl" is the bound itself, times the number of steps.
        """
        chain = self.chain(respacing, data.device)
        link = chain.gather(step, data.dim())  # [B,1,1,1]
        x = link.alpha * data + link.sigma * noise  # [B,C,H,W]
        out = network(x, chain.times(step).float(), label).float()  # [B,C',H,W]
        if self.objective == "kl":
            bound = bound_term(self.estimate(out, x, link), data, x, link, step == 0)
            return {"loss": bound * len(chain)}
        prediction = out[:, : data.shape[1]]
        weight = loss_weight(self.weighting, self.weighting_gamma, self.prediction, link.alpha, link.sigma)
        mse = (weight * (prediction - self._target(data, noise, link)).square()).flatten(1).mean(1)  # [B]
        if self.variance != "learned_range":
            return {"loss": mse}
        detached = torch.cat([prediction.detach(), out[:, data.shape[1] :]], dim=1)
        bound = bound_term(self.estimate(detached, x, link), data, x, link, step == 0)  # [B]
        return {"loss": mse + self.bound_weight * bound, "mse": mse, "bound": bound}

    def estimate(self, out: Tensor, x: Tensor, link: Link, clip: bool = False) -> Estimate:
        """What the network's output [B,C',H,W] says of the states x [B,C,H,W].

        Raises:
            ConfigError: the variance is to be learned, and the network has no channels for it.
        """
        channels = x.shape[1]
        data = to_data(self.prediction, out[:, :channels], x, angular(link))
        return Estimate(data.clamp(-1, 1) if clip else data, self._log_variance(out[:, channels:], data, link))

    def denoiser(
        self, network: Network, label: Tensor, settings: DiffusionSampling
    ) -> Callable[[Tensor, Time], Tensor]:
        """(x [B,C,H,W], t) -> the guided prediction of the clean sample; t is the step, a whole number or int64 [B].

        With `coefficients` and `genlab.processes.predict` it turns into noise, velocity or score.
        """
        guided = guide(network, label, settings.as_guidance(self.steps))

        def data(x: Tensor, t: Time) -> Tensor:
            out = guided(x, t)[:, : x.shape[1]]  # [B,C,H,W]
            found = to_data(self.prediction, out, x, self.coefficients(t, x))
            return found.clamp(-1, 1) if settings.clip_denoised else found

        return data

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        """The shares of data and noise at step t, a number or int64 [B], in shapes that broadcast with x [B, ...]."""
        chain = self.chain(device=x.device)
        return angular(chain.gather(t, x.dim()) if isinstance(t, Tensor) else chain[int(t)])

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: DiffusionSampling,
        on_step: OnStep | None = None,
        weaker: Network | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B], all noise from the samples' own streams.

        Args:
            start: begin from an image, at that of the settings' steps whose noise comes nearest to it.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
            ConfigError: the diffusion has not the steps that the settings ask for, or the cache does not fit.
        """
        if len(label) != len(rng):
            raise ValueError(f"as many labels as random streams are needed: got {len(label)} and {len(rng)}")
        x = rng.normal(*spec.shape)  # [B,C,H,W]
        chain = self.chain(settings.spacing, x.device)
        if start is not None:
            chain = chain.first(_nearest(chain, start.strength) + 1)
            x = start.state(chain[len(chain) - 1].alpha, chain[len(chain) - 1].sigma, x)
        denoise = self.stepwise(network, label, settings, chain, weaker, start)
        with caching(network, settings.cache, len(chain)):
            x = diffusion_sampling.run(denoise, x, chain, settings, rng, on_step)
        return x if start is None else start.hold(x)

    @torch.no_grad()
    def encode(self, network: Network, tokens: Tensor, label: Tensor, settings: DiffusionSampling) -> Tensor:
        """The noise [B,C,H,W] from which deterministic DDIM with the same settings makes `tokens`, approximately."""
        chain = self.chain(settings.spacing, tokens.device)
        return ddpm.ddim_reverse(self.stepwise(network, label, settings, chain), tokens, chain)

    def stepwise(
        self,
        network: Network,
        label: Tensor,
        settings: DiffusionSampling,
        chain: Chain,
        weaker: Network | None = None,
        start: Start | None = None,
    ) -> ddpm.Denoise:
        """(x [B,C,H,W], k) -> the guided estimate at step k of `chain`, as `samplers.ddpm` consumes it."""
        guided = guide(network, label, settings.as_guidance(self.steps), weaker)

        def denoise(x: Tensor, k: int) -> Estimate:
            out = guided(x, float(chain.timesteps[k])).float()  # [B,C',H,W]
            found = self.estimate(out, x, chain[k], settings.clip_denoised)
            return found if start is None else found._replace(data=start.hold(found.data))

        return denoise

    @torch.no_grad()
    def variational_bound(
        self,
        network: Network,
        tokens: Tensor,
        label: Tensor,
        noise: Callable[[], Tensor],
        respacing: str = "",
        clip_denoised: bool = False,
    ) -> Bound:
        """The bound for tokens [B,C,H,W], one network call a step; `noise` gives a draw of their shape."""
        chain = self.chain(respacing, tokens.device)
        settings = DiffusionSampling(clip_denoised=clip_denoised)
        denoise = self.stepwise(network, label, settings, chain)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for k in reversed(range(len(chain))):
            link, draw = chain[k], noise()
            x = link.alpha * tokens + link.sigma * draw
            estimate = denoise(x, k)
            first = torch.full((len(x),), k == 0, device=x.device)
            found = to_noise("data", estimate.data, x, angular(link))
            errors = ((estimate.data - tokens).square().flatten(1).mean(1), (found - draw).square().flatten(1).mean(1))
            rows.append((bound_term(estimate, tokens, x, link, first), *errors))
        terms, data_error, noise_error = (torch.stack(column, dim=1) for column in zip(*rows))  # 3 x [B,steps]
        prior = prior_term(tokens, chain[len(chain) - 1])
        return Bound(prior + terms.sum(1), prior, terms, data_error, noise_error)

    def _target(self, data: Tensor, noise: Tensor, link: Link) -> Tensor:
        match self.prediction:
            case "noise":
                return noise
            case "data":
                return data
            case "velocity":
                return link.alpha * noise - link.sigma * data

    def _log_variance(self, raw: Tensor, data: Tensor, link: Link) -> Tensor:
        """Of x_{k-1} given x_k; `raw` are the output's channels after the prediction."""
        match self.variance:
            case "fixed_small":
                return link.log_posterior_variance
            case "fixed_large":
                return link.log_large_variance
            case "learned_range":  # between these two, in the logarithm (Nichol & Dhariwal 2021, eq. 15)
                if raw.shape != data.shape:
                    raise ConfigError(
                        "process.variance learned_range needs a network with twice the latent's channels: got "
                        f"{data.shape[1] + raw.shape[1]} for {data.shape[1]}; set network.learn_sigma to true"
                    )
                share = (raw + 1) / 2
                return share * link.log_beta + (1 - share) * link.log_posterior_variance


def _nearest(chain: Chain, strength: float) -> int:
    """The step whose share of noise sigma / (alpha + sigma) comes nearest to `strength`; at 1 the last."""
    alpha, sigma = chain.columns.alpha, chain.columns.sigma
    return len(chain) - 1 if strength == 1 else int((sigma / (alpha + sigma) - strength).abs().argmin())


class DiffusionConfig(Settings):
    """Discrete Gaussian diffusion (DDPM, improved DDPM, DiT)."""

    name: Literal["diffusion"] = "diffusion"
    steps: int = Field(1000, ge=2, le=100_000)
    """Steps from data to noise in training."""
    schedule: schedules.ScheduleName = "linear"
    """How noise grows: linear (DDPM, DiT), cosine (improved DDPM) or scaled_linear (latent diffusion)."""
    zero_terminal_snr: bool = False
    """Let the last state be pure noise; for data and velocity predictions."""
    prediction: DiffusionPrediction = "noise"
    """What the network's output means: the noise, the clean sample, or v = alpha noise - sigma data."""
    variance: Variance = "fixed_small"
    """Of the ancestral steps. learned_range reads it from a network with learn_sigma, as the published DiT does."""
    objective: Literal["mse", "kl"] = "mse"
    """Loss: the prediction's error (and with learned variances the bound for these alone), or the bound for all."""
    bound_weight: NonNegativeFloat = 1.0
    """Weight of the bound beside the error, where variances are learned."""
    weighting: Weighting = "none"
    """Weight of the error over the steps: none, min_snr, soft_min_snr, p2 or truncated_snr."""
    weighting_gamma: PositiveFloat | None = None
    """Where min_snr and soft_min_snr level off, as a signal-to-noise ratio (default 5), or the power of p2 (1)."""

    Sampling: ClassVar[type[DiffusionSampling]] = DiffusionSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="after")
    def _defined(self) -> Self:
        if self.zero_terminal_snr and self.prediction == "noise":
            raise ValueError(
                "the noise says nothing of the data in a state of pure noise: got prediction noise with "
                "zero_terminal_snr; set prediction to velocity or data"
            )
        if self.objective == "kl" and self.weighting != "none":
            raise ValueError(f"weighting is for the objective mse: got {self.weighting} with kl; set it to none")
        return self

    def build(self) -> Diffusion:
        """The process."""
        return Diffusion(**self.model_dump(exclude={"name"}))
