"""Diffusion as EDM sees it: data plus noise of standard deviation sigma, and a network between known scalings.

"Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al., NeurIPS 2022 (arXiv 2206.00364);
with the uncertainty of "Analyzing and Improving the Training Dynamics of Diffusion Models",
Karras et al., CVPR 2024 (arXiv 2312.02696). The network is told ln(sigma) / 4.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from genlab.core.contracts import EditKind, LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes import edm_sampling
from genlab.processes.edm_sampling import EdmSampling
from genlab.processes.start import Start
from samplers.edm import Denoise
from samplers.noise import SampleRng


class Scalings(NamedTuple):
    """D(x) = skip x + out F(into x, t), all of the shape of sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor
    t: Tensor


@dataclass(frozen=True)
class Edm(Process):
    """Noise levels of training, and what is known of the data; see EdmConfig for each field."""

    sigma_data: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    uncertainty: bool = False

    takes_weaker: ClassVar[bool] = True
    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "strength"})

    def scalings(self, sigma: Tensor) -> Scalings:
        """The preconditioning at noise levels above 0, by which inputs and targets have unit variance."""
        total = sigma.square() + self.sigma_data**2
        root = total.sqrt()
        return Scalings(self.sigma_data**2 / total, sigma * self.sigma_data / root, 1 / root, sigma.log() / 4)

    def weight(self, sigma: Tensor) -> Tensor:
        """The weight of a squared error of the expected data, which makes that of F weigh 1."""
        return sigma**-2 + self.sigma_data**-2

    def denoise(
        self, network: Callable[..., Any], x: Tensor, sigma: Tensor, label: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The expected data [B,C,H,W] in x [B,C,H,W] at noise levels sigma [B].

        Args:
            options: passed to the network; with `log_variance` it gives that [B] too, else there is None.
        """
        c = Scalings(*(value.view(-1, *[1] * (x.dim() - 1)) for value in self.scalings(sigma)))
        out = network((c.into * x).to(torch.float32), c.t.flatten().float(), label, **options)
        prediction, log_variance = out if isinstance(out, tuple) else (out, None)
        return c.skip * x + c.out * prediction[:, : x.shape[1]].to(x.dtype), log_variance

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses at one log-normal noise level for each of the tokens [B,C,H,W]; see `losses_at`."""
        sigma = (self.log_mean + self.log_std * rng.normal()).exp()  # [B]
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_at(network, tokens, noise, sigma, label)

    def losses_at(
        self, network: Callable[..., Any], data: Tensor, noise: Tensor, sigma: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Named losses [B], means over all elements, for data and noise [B,C,H,W] at noise levels sigma [B]."""
        errors, u = self.errors_at(network, data, noise, sigma, label)
        mse = errors.flatten(1).mean(1)  # [B]
        if u is None:
            return {"loss": mse}
        return {"loss": mse / u.exp() + u, "mse": mse, "log_variance": u}

    def errors_at(
        self, network: Callable[..., Any], data: Tensor, noise: Tensor, sigma: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Weighted squared errors [B,C,H,W], and if it is trained the log-variance u [B].

        The loss of EDM2 is errors / exp(u) + u, least where u is the logarithm of the mean error at that level.
        """
        options = {"log_variance": True} if self.uncertainty else {}
        level = sigma.view(-1, *[1] * (data.dim() - 1))  # [B,1,1,1]
        expected, u = self.denoise(network, data + level * noise, sigma, label, **options)
        return self.weight(level) * (expected - data).float().square(), u

    def denoiser(
        self, network: Network, label: Tensor, settings: EdmSampling, weaker: Network | None = None
    ) -> Denoise:
        """(x [B,C,H,W], sigma, sigma where the step began) -> the guided expected data [B,C,H,W].

        Args:
            weaker: a second network to guide away from (autoguidance); by default guidance is classifier-free.
        """

        def expected(net: Network, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
            levels = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
            return self.denoise(net, x, levels, labels)[0]

        return edm_sampling.guided(expected, network, label, settings, weaker)

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: EdmSampling,
        on_step: OnStep | None = None,
        weaker: Network | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B], all steps' noise from the samples' own streams.

        Args:
            start: begin from an image, with the later ones of the settings' steps.

        Raises:
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        if len(label) != len(rng):
            raise ValueError(f"as many labels as random streams are needed: got {len(label)} and {len(rng)}")
        noise, highest = rng.normal(*spec.shape), settings.sigma_max  # [B,C,H,W]
        denoise = self.denoiser(network, label, settings, weaker)
        if start is None:
            return edm_sampling.run(denoise, highest * noise, settings, rng, on_step)

        def held(x: Tensor, sigma: float, step: float) -> Tensor:
            return start.hold(denoise(x, sigma, step))

        level = min(self.sigma_data * start.noise_to_signal, highest)
        x = level * start.state(1 / level, 1.0, noise)
        begin = level if level < highest else None
        return start.hold(edm_sampling.run(held, x, settings, rng, on_step, begin))


class EdmConfig(Settings):
    """Preconditioned diffusion (EDM, EDM2)."""

    name: Literal["edm"] = "edm"
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the data, on which all scalings rest."""
    log_mean: float = -1.2
    """Mean of ln(sigma) in training. EDM2: -0.4 for latents of 512, -0.8 for pixels of 64."""
    log_std: PositiveFloat = 1.2
    """Standard deviation of ln(sigma) in training. EDM2: 1.0 and 1.6."""
    uncertainty: bool = False
    """Train how uncertain the network is at each noise level, and weigh errors by it; needs network edm2."""

    Sampling: ClassVar[type[EdmSampling]] = EdmSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    def check(self, network: nn.Module) -> None:
        """Raises ConfigError for a network that cannot tell its uncertainty, if that is to be trained."""
        if self.uncertainty and "log_variance" not in inspect.signature(network.forward).parameters:
            raise ConfigError(f"process.uncertainty needs network edm2, got {type(network).__name__}; set it to false")

    def build(self) -> Edm:
        """The process."""
        return Edm(**self.model_dump(exclude={"name"}))
