"""Rectified flow again: a flow trained on straight lines between noise and what its teacher makes of that noise.

"Flow Straight and Fast", Liu et al., ICLR 2023 (arXiv 2209.03003); density of times and losses are those of "Improving
the Training of Rectified Flows", Lee et al., NeurIPS 2024 (arXiv 2405.20320), and its public code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.pairs import Pairs
from genlab.distillation.settings import Parts
from genlab.distillation.taught import Lesson, LessonSettings
from genlab.processes.distances import HUBER, mean_square, pseudo_huber
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.paths import coefficients, interpolate
from genlab.processes.predict import to_velocity
from samplers.noise import SampleRng

VelocityMetric: TypeAlias = Literal["square", "norm", "huber"]
_EDGE = 1e-5  # distance of times from the ends


def time_density(t: Tensor, a: float) -> Tensor:
    """The density of training times t in [0, 1], high at both ends: e^(a t) + e^(a (1 - t)), normalised."""
    return (torch.exp(a * t) + torch.exp(a * (1 - t))) * (a / (2 * math.expm1(a)))


def times(u: Tensor, rising: Tensor, a: float) -> Tensor:
    """Times with this density, of uniform numbers u [B] in [0, 1), kept from the ends.

    Args:
        rising: fair coins [B], which of the two exponentials a time is drawn from.
    """
    t = torch.log1p(u * math.expm1(a)) / a
    return _EDGE + (1 - 2 * _EDGE) * torch.where(rising, t, 1 - t)


def velocity_distance(metric: VelocityMetric, a: Tensor, b: Tensor) -> Tensor:
    """[B] of velocities [B, ...]: mean square, Euclidean norm, or pseudo-Huber, divided by the number of elements n.

    The pseudo-Huber distance has c = 0.00054 n, as in the public code, not its square root.
    """
    match metric:
        case "square":
            return mean_square(a, b)
        case "norm":
            return pseudo_huber(a, b, 0.0)
        case "huber":
            return pseudo_huber(a, b, HUBER * a[0].numel()) / a[0].numel()


def velocities(
    flow: Flow, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor
) -> tuple[Tensor, Tensor]:
    """What the network predicts, and what it should, on the lines from noise to data; all [B,C,H,W], t [B]."""
    c = coefficients(flow.path, t, data)
    x = interpolate(c, data, noise)
    out = network(x, t, label)[:, : x.shape[1]]
    return to_velocity(flow.prediction, out, x, c).float(), (c.d_alpha * data + c.d_sigma * noise).float()


class Reflow(LessonSettings):
    """A flow that learns the straight lines between the ends of its teacher's paths."""

    name: Literal["reflow"] = "reflow"
    file: str
    """Where the teacher's pairs are, or go when they have been made: labels, samples and the seed of their noise."""
    pairs: PositiveInt = 50_000
    """How many. Published: a million for CIFAR-10, five for ImageNet-64."""
    sampler: Literal["euler", "heun", "midpoint", "rk4"] = "heun"
    """By which the teacher makes them."""
    steps: PositiveInt = 16
    """Of that sampler."""
    slope: PositiveFloat = 4.0
    """a of the density of times; larger: more of them near the ends."""
    metric: VelocityMetric = "huber"
    """Distance between velocities."""

    def check(self, student: Parts, teacher: Parts | None) -> None:
        """As all do; and both must be flows. Raises ConfigError."""
        super().check(student, teacher)
        for who, part in (("the student", student), ("distillation.teacher", teacher)):
            if part is not None and not isinstance(part.process, Flow):
                raise ConfigError(
                    f"{who}: reflow straightens flows, got {type(part.process).__name__}; choose process flow, or "
                    "distil by consistency"
                )

    @property
    def sampling(self) -> FlowSampling:
        """How the teacher samples."""
        return FlowSampling(sampler=self.sampler, steps=self.steps, guidance=self.teacher_guidance)

    def lesson(self, flow: Flow, teacher: Generator, seed: int) -> Lesson:
        """The student's loss on pairs, which are read or made when it is first asked for."""

        @cache
        def pairs() -> Pairs:
            return Pairs.of(Path(self.file), teacher, self.sampling, self.pairs, seed)

        def lesson(
            student: Callable[..., Any],
            average: Callable[..., Any],
            tokens: Tensor,
            label: Tensor,
            rng: SampleRng,
            update: int,
        ) -> dict[str, Tensor]:
            data, noise, classes = pairs().rows(rng.integers(self.pairs))
            t = times(rng.uniform(), rng.uniform() < 0.5, self.slope)
            null = label == teacher.network.null_label  # dropped for these samples
            ours, wanted = velocities(flow, student, data, noise, t, torch.where(null, label, classes))
            return {"loss": velocity_distance(self.metric, ours, wanted)}

        return lesson

    def lesson_of(self, student: Generator, teacher: Generator, seed: int) -> Lesson:
        assert isinstance(student.process, Flow), "check has seen to it"
        return self.lesson(student.process, teacher, seed)
