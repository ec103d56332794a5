"""Consistency models trained on data alone: predictions of the same sample at two noise levels must agree.

"Consistency Models", Song et al., ICML 2023 (arXiv 2303.01469); see `consistency_pairs` for CT, iCT and ECT. States
are data + sigma noise, as in EDM, and the prediction of the data is the consistency function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from genlab.core.contracts import Process
from genlab.core.settings import Settings
from genlab.processes.consistency_pairs import (
    ConsistencyTraining,
    Curriculum,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    Pair,
)
from genlab.processes.consistency_sampling import ConsistencySampling, Renoising
from genlab.processes.edm import Scalings
from samplers.noise import SampleRng


@dataclass(frozen=True)
class Consistency(Renoising):
    """The boundary form of EDM's scalings and a curriculum of level pairs; see ConsistencyConfig for each field."""

    curriculum: Curriculum = field(default_factory=ImprovedConsistencyTraining)
    boundary: float = 0.002
    time_factor: float = 0.25
    step: int = 0
    """The update at which `loss` stands in the curriculum; `at` moves it."""

    def at(self, step: int) -> Consistency:
        """The process at update `step` (0, 1, ...)."""
        return replace(self, step=step)

    def scalings(self, sigma: Tensor) -> Scalings:
        """EDM's, changed such that the prediction at the level `boundary` is the state itself (appendix C)."""
        shifted, root = sigma - self.boundary, (sigma.square() + self.sigma_data**2).sqrt()
        skip = self.sigma_data**2 / (shifted.square() + self.sigma_data**2)
        return Scalings(skip, shifted * self.sigma_data / root, 1 / root, self.time_factor * sigma.log())

    def loss(
        self,
        network: Callable[..., Tensor],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        average: Callable[..., Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The losses at one pair of levels for each of the tokens [B,C,H,W]; see `losses_between`."""
        pair = self.curriculum.pair(rng, self.step, self.sigma_data)
        noise = rng.normal(*tokens.shape[1:]).to(tokens.dtype)  # [B,C,H,W]
        return self.losses_between(network, network if average is None else average, tokens, noise, pair, label)

    def losses_between(
        self,
        network: Callable[..., Tensor],
        target: Callable[..., Tensor],
        data: Tensor,
        noise: Tensor,
        pair: Pair,
        label: Tensor,
    ) -> dict[str, Tensor]:
        """Named losses [B] for data and noise [B,C,H,W]; algorithm 3 (CT).

        The two states share their noise, and the two calls their dropout. `target` gets no gradient; where the lower
        level is 0, the data itself is the target.
        """
        with replayed(data.device) as replay:
            ours = self.denoise(network, data + wide(pair.high, data) * noise, pair.high, label)[0]
            with torch.no_grad(), replay():
                low = pair.low.clamp(min=torch.finfo(torch.float32).tiny)  # a level of 0 has no logarithm
                theirs = self.denoise(target, data + wide(pair.low, data) * noise, low, label)[0]
        theirs = torch.where(wide(pair.low, data) > 0, theirs, data)
        distance = self.curriculum.distance(ours.float(), theirs.float())  # [B]
        return {"loss": pair.weight * distance, "distance": distance}


class AveragedConsistency(Consistency):
    """Consistency training whose target is the network's moving average (CT)."""

    takes_average: ClassVar[bool] = True

    @property
    def average_decay(self) -> Callable[[int], float] | None:
        return self.curriculum.average_decay


@contextmanager
def replayed(device: torch.device) -> Iterator[Callable[[], Any]]:
    """Gives a context in which torch's global random numbers are those from here on once more.

    Two calls of a network then drop the same units. The generator goes on after the first call's numbers.
    """
    on_gpu = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()

    @contextmanager
    def replay() -> Iterator[None]:
        with torch.random.fork_rng([device] if on_gpu else []):
            if on_gpu:
                torch.cuda.set_rng_state(state, device)
            else:
                torch.set_rng_state(state)
            yield

    yield replay


def wide(value: Tensor, x: Tensor) -> Tensor:
    """One number a sample [B], in a shape that broadcasts with x [B, ...]."""
    return value.view(-1, *[1] * (x.dim() - 1))


class ConsistencyConfig(Settings):
    """Consistency training on data alone (CT, iCT), or tuning of a trained diffusion model (ECT)."""

    name: Literal["consistency"] = "consistency"
    curriculum: Annotated[
        ConsistencyTraining | ImprovedConsistencyTraining | EasyConsistencyTuning, Field(discriminator="name")
    ] = ImprovedConsistencyTraining()
    """Which pairs of noise levels are compared, and how."""
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the data, on which all scalings rest."""
    boundary: NonNegativeFloat = 0.002
    """Noise level at which the prediction is the state itself; 0 gives EDM's own scalings, as ECT has them."""
    time_factor: PositiveFloat = 0.25
    """The network is told this times ln(sigma): 0.25 in EDM, 250 in the public networks of consistency models."""

    Sampling: ClassVar[type[ConsistencySampling]] = ConsistencySampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    def build(self) -> Process:
        """The process."""
        kind = AveragedConsistency if self.curriculum.averaged_target else Consistency
        return kind(
            sigma_data=self.sigma_data,
            boundary=self.boundary,
            time_factor=self.time_factor,
            curriculum=self.curriculum,
        )
