"""Consistency models in continuous time: the prediction of the data must not change along the probability flow.

"Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", Lu & Song, ICLR 2025 (arXiv 2410.11081), and
its public code in FastGen. In TrigFlow the state at the angle a in [0, pi/2) is x = cos(a) data + sin(a) z with noise z
of the data's standard deviation s, and data is predicted as cos(a) x - sin(a) s F(x / s, a). An EDM network whose
noise level is s tan(a) is such an F: what stands between EDM's scalings is -F.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genlab.core.contracts import Network
from genlab.core.settings import Settings
from genlab.processes.consistency_sampling import ConsistencySampling, Renoising
from genlab.processes.distances import mean_square
from genlab.processes.edm import EdmConfig
from genlab.processes.guidance import Guidance, guide
from samplers.noise import SampleRng

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""F: (x / s [B,C,H,W], angle [B]) -> [B,C,H,W]."""


class State(NamedTuple):
    """Where samples are, and which way they go."""

    x: Tensor
    """[B,C,H,W]."""
    angle: Tensor
    """[B]."""
    slope: Tensor
    """dx/da along the probability flow [B,C,H,W]."""


class Tangent(NamedTuple):
    """What a network is told to change by, and how it was found; all [B,C,H,W]."""

    direction: Tensor
    """g, normalised."""
    derivative: Tensor
    """Of F along the flow, times cos(a) sin(a)."""


@dataclass(frozen=True)
class ContinuousConsistency(Renoising):
    """sCT: the flow is that of the data and noise drawn together; see ContinuousConsistencyConfig for each field."""

    log_mean: float = -1.0
    log_std: float = 1.4
    warmup: int = 10_000
    norm: Literal["rms", "l2"] = "rms"
    damping: float = 0.1
    prior_weight: bool = True
    per_element: bool = True
    step: int = 0
    """The update at which `loss` stands in the warm-up; `at` moves it."""

    def at(self, step: int) -> ContinuousConsistency:
        """The process at update `step` (0, 1, ...)."""
        return replace(self, step=step)

    def angle(self, sigma: Tensor) -> Tensor:
        """The angle in [0, pi/2) whose tangent is sigma / s, at EDM's noise levels above 0."""
        return torch.atan2(sigma, torch.full_like(sigma, self.sigma_data))

    def velocity(self, network: Callable[..., Any], label: Tensor, **options: Any) -> Callable[..., Any]:
        """(x / s [B,C,H,W], angle [B]) -> F [B,C,H,W], or (F, log-variance [B]) with the option `log_variance`."""

        def call(x: Tensor, angle: Tensor) -> Any:
            out = network(x, (self.sigma_data * angle.tan()).log() / 4, label, **options)
            return (-out[0][:, : x.shape[1]], out[1]) if isinstance(out, tuple) else -out[:, : x.shape[1]]

        return call

    def guided_velocity(self, network: Network, label: Tensor, guidance: float) -> Velocity:
        """The teacher's F under classifier-free guidance; 1 is none."""
        return guide(_Told(self, network), label, Guidance(guidance, (0.0, math.pi / 2)))

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The losses at one log-normal noise level for each of the tokens [B,C,H,W]; see `losses_of`."""
        return self.taught_loss(network, tokens, label, rng)

    def taught_loss(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        flow: Velocity | None = None,
    ) -> dict[str, Tensor]:
        """As `loss`, along a teacher's flow."""
        sigma = (self.log_mean + self.log_std * rng.normal()).exp()  # [B]
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_of(network, self.state(tokens, noise, sigma, flow), sigma, label)

    @torch.no_grad()
    def state(self, data: Tensor, noise: Tensor, sigma: Tensor, flow: Velocity | None = None) -> State:
        """The states of data and standard normal noise [B,C,H,W] at EDM's noise levels sigma [B].

        Args:
            flow: a teacher's F; by default the slope is cos(a) z - sin(a) data.
        """
        angle = self.angle(sigma)
        cos, sin = _wide(angle.cos(), data), _wide(angle.sin(), data)
        z = self.sigma_data * noise
        x = cos * data + sin * z  # [B,C,H,W]
        if flow is None:
            return State(x, angle, cos * z - sin * data)
        return State(x, angle, self.sigma_data * flow(x / self.sigma_data, angle))

    def losses_of(self, network: Callable[..., Any], state: State, sigma: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Named losses [B] of states at EDM's noise levels sigma [B] (algorithm 1)."""
        options = {"log_variance": True} if self.uncertainty else {}
        out = self.velocity(network, label, **options)(state.x / self.sigma_data, state.angle)
        f, u = out if self.uncertainty else (out, torch.zeros_like(sigma))
        goal = f.detach() + self.tangent(self.velocity(network, label), f.detach(), state).direction
        error = mean_square(f.float(), goal.float())  # [B]
        weight = 1 / sigma if self.prior_weight else torch.ones_like(sigma)
        if self.per_element:
            weight = weight / state.x[0].numel()
        losses = {"loss": weight * error / u.exp() + u, "error": error}
        return losses | {"log_variance": u} if self.uncertainty else losses

    @torch.no_grad()
    def tangent(self, velocity: Velocity, f: Tensor, state: State) -> Tangent:
        """Where F = f [B,C,H,W] should go in these states (algorithm 1).

        The part with F's own derivative grows over the warm-up.
        """
        x, angle, slope = state
        cos, sin = _wide(angle.cos(), x), _wide(angle.sin(), x)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward-mode derivative
            derivative = torch.func.jvp(
                velocity, (x / self.sigma_data, angle), (cos * sin * slope / self.sigma_data, angle.cos() * angle.sin())
            )[1]
        grown = min(1.0, self.step / self.warmup) if self.warmup else 1.0
        g = -cos.square() * (self.sigma_data * f - slope) - grown * (cos * sin * x + self.sigma_data * derivative)
        norm = _wide(g.flatten(1).norm(dim=1), g)
        if self.norm == "rms":
            norm = norm / g[0].numel() ** 0.5
        return Tangent(g / (norm + self.damping), derivative)


class _Told(Network):
    """The F of a network, called as networks are: with a state, an angle and labels."""

    def __init__(self, process: ContinuousConsistency, network: Network):
        super().__init__()
        self.process, self.network, self.num_classes = process, network, network.num_classes

    def forward(self, x: Tensor, angle: Tensor, label: Tensor) -> Tensor:
        return self.process.velocity(self.network, label)(x, angle)


def _wide(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.dim() - 1))


class ContinuousConsistencyConfig(Settings):
    """Consistency training in continuous time (sCT)."""

    name: Literal["continuous_consistency"] = "continuous_consistency"
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the data, on which all scalings rest."""
    log_mean: float = -1.0
    log_std: PositiveFloat = 1.4
    """Mean and standard deviation of ln(sigma); the published EDM2-XL has 1.6."""
    uncertainty: bool = False
    """Train how uncertain the network is at each noise level, and weigh errors by it; needs network edm2."""
    warmup: NonNegativeInt = 10_000
    """Updates over which the derivative of the network enters its own target."""
    norm: Literal["rms", "l2"] = "rms"
    """Of the tangent: over the elements' mean square, or their sum as in the paper."""
    damping: PositiveFloat = 0.1
    """Added to the norm by which the tangent is divided."""
    prior_weight: bool = True
    """Weigh errors by 1 / sigma."""
    per_element: bool = True
    """Divide errors by the number of elements once more."""

    Sampling: ClassVar[type[ConsistencySampling]] = ConsistencySampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    def check(self, network: nn.Module) -> None:
        """Raises ConfigError for a network that cannot tell its uncertainty, if that is to be trained."""
        EdmConfig(uncertainty=self.uncertainty).check(network)

    def build(self) -> ContinuousConsistency:
        """The process."""
        return ContinuousConsistency(**self.model_dump(exclude={"name"}))
