"""Flow matching along an interpolant path: train a network at random times, integrate it from noise to data.

"SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers", Ma et al., ECCV 2024
(arXiv 2401.08740). Time runs from noise at t = 0 to data at t = 1 and enters the network as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, Process
from genlab.core.settings import Settings
from genlab.processes import flow_sampling
from genlab.processes.acceleration import caching
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.guidance import guide
from genlab.processes.likelihood import log_likelihood
from genlab.processes.paths import (
    FlowPrediction,
    PathName,
    Time,
    coefficients,
    default_eps,
    interpolate,
    interval,
    time_at,
)
from genlab.processes.predict import to_velocity
from genlab.processes.start import Start, check_begun
from samplers.grids import uniform
from samplers.noise import SampleRng

LossWeight: TypeAlias = Literal["none", "velocity", "likelihood"]
_LEAST_NOISE = 0.01  # sigma below which the noise in a known state is not divided by it


@dataclass(frozen=True)
class Flow(Process):
    """A path, what the network predicts along it, and how its errors are weighed; see FlowConfig for each field.

    Networks may have more output channels than the state; the first C are the prediction.
    """

    path: PathName = "linear"
    prediction: FlowPrediction = "velocity"
    loss_weight: LossWeight = "none"
    time: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    direction_weight: float = 0.0
    train_eps: float | None = None
    sample_eps: float | None = None

    takes_weaker: ClassVar[bool] = True
    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "strength"})

    def train_interval(self) -> tuple[float, float]:
        """The times that are trained."""
        eps = default_eps(self.path, self.prediction)[0] if self.train_eps is None else self.train_eps
        return interval(self.path, eps)

    def sample_interval(self) -> tuple[float, float]:
        """The times between which an ODE is integrated."""
        eps = default_eps(self.path, self.prediction)[1] if self.sample_eps is None else self.sample_eps
        return interval(self.path, eps)

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses at one random time for each of the tokens [B,C,H,W]; see `losses_at`."""
        match self.time:
            case "uniform":
                u = rng.uniform()  # [B]
            case "logit_normal":  # Esser et al. 2024, section 3.1
                u = torch.sigmoid(self.time_mean + self.time_std * rng.normal())  # [B]
        start, end = self.train_interval()
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_at(network, tokens, noise, u * (end - start) + start, label)

    def loss_at(self, network: Callable[..., Tensor], x1: Tensor, x0: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """What is minimised [B]; see `losses_at`."""
        return self.losses_at(network, x1, x0, t, label)["loss"]

    def losses_at(
        self, network: Callable[..., Tensor], x1: Tensor, x0: Tensor, t: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Named losses [B] for data x1, noise x0 (both [B,C,H,W]) and times t [B] (SiT section 2.2).

        "loss" is the mean squared error, alone, or with a `direction_weight` its parts too: "mse", and "direction", one
        minus the cosine between the velocities of each position (FasterDiT, Yao et al. 2024). A score is compared after
        multiplication by sigma, so that all three targets are of unit size.
        """
        c = coefficients(self.path, t, x1)  # [B,1,1,1]
        out = network(interpolate(c, x1, x0), t, label)[:, : x1.shape[1]]  # [B,C,H,W]
        match self.prediction:
            case "velocity":
                error = out - (c.d_alpha * x1 + c.d_sigma * x0)
            case "noise":
                error = out - x0
            case "score":
                error = c.sigma * out + x0
        match self.loss_weight:
            case "velocity":  # the error of the velocity that follows from the prediction
                error = error * (c.score_gain / c.sigma)
            case "likelihood":  # a bound on the likelihood of the SDE (Song et al. 2021, theorem 1)
                error = error * (c.score_gain.sqrt() / c.sigma)
        mse = error.float().square().flatten(1).mean(1)  # [B]
        if self.direction_weight == 0:
            return {"loss": mse}
        cosine = F.cosine_similarity(out.float(), (out - error).float(), dim=1)  # [B,H,W]
        direction = 1 - cosine.flatten(1).mean(1)  # [B]
        return {"loss": mse + self.direction_weight * direction, "mse": mse, "direction": direction}

    def denoiser(
        self, network: Network, label: Tensor, settings: FlowSampling, weaker: Network | None = None
    ) -> Callable[[Tensor, Time], Tensor]:
        """(x [B,C,H,W], t) -> the guided velocity [B,C,H,W]; t is a number or [B].

        Guidance, away from `weaker` if there is one, acts on what the network predicts. `genlab.processes.predict`
        turns velocities into anything else.
        """
        guided = guide(network, label, settings.as_guidance(), weaker)

        def velocity(x: Tensor, t: Time) -> Tensor:
            out = guided(x, t)[:, : x.shape[1]]  # [B,C,H,W]
            return to_velocity(self.prediction, out, x, coefficients(self.path, t, x))

        return velocity

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: FlowSampling,
        on_step: OnStep | None = None,
        weaker: Network | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B], all steps' noise from the samples' own streams.

        Whatever the sampler, a sample does not depend on which others are in the batch. For this dopri5, which controls
        the error of all that it integrates together, goes image by image, and `on_step` counts images. Caches whose
        kind measures change (first_block, accumulated) do so over the batch, and so make an exception.

        Args:
            start: begin from an image, with the later ones of the settings' steps.

        Raises:
            ConfigError: a network that the settings' cache does not fit, or a start with too little noise.
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        if len(label) != len(rng):
            raise ValueError(f"as many labels as random streams are needed: got {len(label)} and {len(rng)}")
        x, span, begin = rng.normal(*spec.shape), self.sample_interval(), None  # [B,C,H,W]
        if start is not None:
            begin = max(span[0], time_at(self.path, start.log_snr))
            check_begun(start, begin < span[1])
            c = coefficients(self.path, begin, x)
            x = start.state(c.alpha, c.sigma, x)
        if settings.sampler == "dopri5":
            starts = [None if start is None else start.row(row) for row in range(len(label))]
            fields = [self.denoiser(network, row[None], settings, weaker) for row in label]
            fields = [self._held(field, own) for field, own in zip(fields, starts)]
            x = flow_sampling.one_by_one(fields, x, (begin or span[0], span[1]), settings, on_step)
        else:
            run = flow_sampling.stochastic if settings.is_stochastic else flow_sampling.deterministic
            velocity = self._held(self.denoiser(network, label, settings, weaker), start)
            with caching(network, settings.cache, settings.steps):
                x = run(self.path, velocity, x, span, settings, rng, on_step, begin)
        return x if start is None else start.hold(x)

    def _held(
        self, velocity: Callable[[Tensor, Time], Tensor], start: Start | None
    ) -> Callable[[Tensor, Time], Tensor]:
        """Velocities that lead to the start's tokens where they stay."""
        if start is None or start.keep is None:
            return velocity
        keep, tokens = start.keep, start.tokens

        def held(x: Tensor, t: Time) -> Tensor:
            c = coefficients(self.path, t, x)
            known = to_velocity("data", tokens, x, c._replace(sigma=c.sigma.clamp(min=_LEAST_NOISE)))
            return torch.where(keep, known, velocity(x, t))

        return held

    @torch.no_grad()
    def log_likelihood(
        self, network: Network, tokens: Tensor, label: Tensor, rng: SampleRng, steps: int = 50, method: str = "heun"
    ) -> Tensor:
        """log p(tokens | label) [B] in nats over all dimensions, of the unguided probability flow."""

        def probe() -> Tensor:
            return (2 * rng.integers(2, *tokens.shape[1:]) - 1).to(tokens.dtype)

        start, end = self.sample_interval()
        velocity = self.denoiser(network, label, FlowSampling())
        return log_likelihood(velocity, tokens, uniform(end, start, steps), probe, method)[0]


class FlowConfig(Settings):
    """Flow matching (SiT)."""

    name: Literal["flow"] = "flow"
    path: PathName = "linear"
    """From noise to data: linear, gvp (trigonometric) or vp (the diffusion of DiT in continuous time)."""
    prediction: FlowPrediction = "velocity"
    """What the network's output means."""
    loss_weight: LossWeight = "none"
    """Weight over time, for noise and score predictions."""
    time: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of training times; logit_normal is sigmoid(time_mean + time_std N(0, 1)), denser in the middle."""
    time_mean: float = 0.0
    time_std: PositiveFloat = 1.0
    direction_weight: NonNegativeFloat = 0.0
    """Weight of an additional loss on the direction of velocities alone (FasterDiT, LightningDiT: 1)."""
    train_eps: float | None = Field(None, ge=0, lt=0.5)
    """Distance of training times from the ends; by default what path and prediction need."""
    sample_eps: float | None = Field(None, ge=0, lt=0.5)
    """Distance of sampling times from the ends; by default what path and prediction need."""

    Sampling: ClassVar[type[FlowSampling]] = FlowSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="after")
    def _defined(self) -> Self:
        if self.prediction == "velocity" and self.loss_weight != "none":
            raise ValueError(
                f"loss_weight is for noise and score predictions: got {self.loss_weight} with velocity; set it to none"
            )
        if self.prediction != "velocity" and self.direction_weight:
            raise ValueError(
                f"direction_weight is for velocity predictions: got {self.direction_weight} with {self.prediction}; "
                "set it to 0"
            )
        ends_undefined = self.path == "vp" or self.prediction != "velocity"
        if ends_undefined and 0 in (self.train_eps, self.sample_eps):
            raise ValueError(
                f"path {self.path} with prediction {self.prediction} is undefined at an end: got an eps of 0; "
                "set train_eps and sample_eps to 1e-3, or leave them out"
            )
        return self

    def build(self) -> Flow:
        """The process."""
        return Flow(**self.model_dump(exclude={"name"}))
