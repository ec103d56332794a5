"""A generator of one or a few steps: a network that names the clean sample at once, and noises it again between steps.

Its networks come from distillation ("Improved Distribution Matching Distillation for Fast Image Synthesis", Yin et al.,
NeurIPS 2024, arXiv 2405.14867, section 4.4); what they are told and what their output means is another process's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Network, OnStep, Process, SamplingSettings
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.processes.diffusion import DiffusionConfig
from genlab.processes.edm import EdmConfig
from genlab.processes.flow import FlowConfig
from genlab.processes.levels import Levels, levels_of
from genlab.processes.monitor import StepMonitor
from genlab.processes.vp import VpDiffusionConfig
from samplers.noise import SampleRng

BaseConfig = Annotated[FlowConfig | DiffusionConfig | VpDiffusionConfig | EdmConfig, Field(discriminator="name")]


class FewStepSampling(SamplingSettings):
    """Settings of a few-step generator. Guidance is none of them: students have learnt their teacher's."""

    steps: PositiveInt | None = None
    """Network calls, evenly chosen of the levels that were trained and always from the first; by default all."""


@dataclass(frozen=True)
class FewStep(Process):
    """A process and the levels at which its network generates.

    Args:
        base: what the network's inputs and outputs mean.
        times: levels in the unit of `base`, from noise to data. The first state is pure noise whatever its level.
    """

    base: Process
    times: tuple[float, ...]

    @property
    def levels(self) -> Levels:
        """The noise levels of `base`."""
        return levels_of(self.base)

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        raise ConfigError(
            "process few_step has no loss of its own, its networks learn from a teacher; add distillation"
        )

    def generate(self, network: Callable[..., Tensor], x: Tensor, t: float, label: Tensor) -> Tensor:
        """The clean samples [B,C,H,W] that `network`, perhaps wrapped, names for the states x at level t."""
        levels, times = self.levels, self.levels.times(t, x)
        return levels.data(network(*levels.inputs(x, times), label), x, times)

    def state(self, data: Tensor | None, noise: Tensor, t: float) -> Tensor:
        """The state [B,C,H,W] from which the step at level t begins; without data, at the first level, pure noise."""
        times = self.levels.times(t, noise)
        return self.levels.pure(noise, times) if data is None else self.levels.noised(data, noise, times)

    def run(
        self,
        network: Callable[..., Tensor],
        label: Tensor,
        noise: Callable[[], Tensor],
        times: Sequence[float],
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor | None:
        """The clean samples [B,C,H,W] after the steps at `times`; None if there are none.

        Args:
            noise: gives a new draw [B,C,H,W], one for each step.
            on_step: called with the number of steps done and the clean samples after it.
        """
        data: Tensor | None = None
        for step, t in enumerate(times, start=1):
            x = self.state(data, noise(), t)
            data = self.generate(network, x, t, label)
            if on_step is not None:
                on_step(step, data)
        return data

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: FewStepSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens [B,C,H,W] in float32 for `label` [B], all noise from the samples' own streams.

        Raises:
            ConfigError: more steps than were trained.
            NonFinite: a state became NaN or infinite, naming step and samples.
        """
        if len(label) != len(rng):
            raise ValueError(f"as many labels as random streams are needed: got {len(label)} and {len(rng)}")
        times = self.chosen(settings.steps)
        monitor = StepMonitor(label, len(times), on_step)
        data = self.run(
            network, label, lambda: rng.normal(*spec.shape), times, lambda step, x: monitor.follow(step, x, x)
        )
        monitor.check()
        assert data is not None, "there is at least one level"
        return data.float()

    def chosen(self, steps: int | None) -> tuple[float, ...]:
        """`steps` of the levels, evenly from the first on; None: all. Raises ConfigError if there are fewer."""
        count = len(self.times)
        steps = steps or count
        if steps > count:
            learnt = "1 level; take 1" if count == 1 else f"{count} levels; take {count} or fewer"
            raise ConfigError(f"sampling.steps={steps}: this generator has learnt {learnt}")
        return tuple(self.times[index * count // steps] for index in range(steps))


class FewStepConfig(Settings):
    """One-step and few-step generation, for the students of distillation."""

    name: Literal["few_step"] = "few_step"
    base: BaseConfig
    """The process whose inputs and outputs the network has: the teacher's, for a student that starts from it."""
    levels: PositiveInt | tuple[float, ...] = 1
    """How many levels, or which, in the unit of `base` and from noise to data. The first input is pure noise whatever
    its level: where the base predicts noise, a lower first level (step 399 to 625 of 1000) amplifies errors less."""
    shift: PositiveFloat = 1.0
    """Of a flow with so many levels: below 1 moves them towards the noise, above 1 towards the data."""

    Sampling: ClassVar[type[FewStepSampling]] = FewStepSampling
    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.shift != 1 and not (isinstance(self.base, FlowConfig) and isinstance(self.levels, int)):
            raise ValueError("shift moves a number of levels of a flow; leave it out, or list the levels themselves")
        levels = levels_of(self.base.build())
        for t in self.times():
            if problem := levels.problem(t):
                raise ValueError(f"levels: {problem}; got {t:g}")
        noisiness = [levels.noisiness(t) for t in self.times()]
        if not noisiness or any(a <= b for a, b in pairwise(noisiness)):
            raise ValueError(f"levels must go from noise to data, each once: got {list(self.times())}")
        return self

    def times(self) -> tuple[float, ...]:
        """The levels from noise to data."""
        if isinstance(self.levels, int):
            return levels_of(self.base.build()).spread(self.levels, self.shift)
        return self.levels

    def check(self, network: nn.Module) -> None:
        """Raises ConfigError for a network that does not suit `base`."""
        check = getattr(self.base, "check", None)
        if check is not None:
            check(network)

    def build(self) -> FewStep:
        """The process."""
        return FewStep(self.base.build(), self.times())
