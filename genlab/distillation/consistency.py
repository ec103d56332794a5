"""Consistency distillation: what a student says of a state, it must say of the state one step of its teacher later.

"Consistency Models", Song et al., ICML 2023 (arXiv 2303.01469), section 4. The student is any denoiser over the noise
levels of its process: what it takes for the data is the consistency function, which at the data itself is the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from genlab.core.contracts import Network
from genlab.core.generator import Generator
from genlab.distillation.taught import Lesson, LessonSettings, student_levels
from genlab.distillation.teacher_steps import Predict, Solver, denoiser, grid, guided, ratio, step
from genlab.processes.consistency_pairs import LevelWeight, level_weight
from genlab.processes.distances import Metric, distance
from genlab.processes.levels import Levels, levels_of
from samplers.noise import SampleRng


def agreement(
    levels: Levels,
    student: Predict,
    target: Predict,
    guide: Predict,
    x: Tensor,
    here: Tensor,
    there: Tensor,
    solver: Solver,
    metric: Metric,
) -> Tensor:
    """How far the student at (x, here) is from the target one step of the teacher's later; algorithm 2.

    Args:
        levels: of x, `here` and `there`.
        student, target, guide: the predictions of the data by the student, its target and the teacher.
        x: states [B,C,H,W].
        here, there: levels [B], `there` nearer the data.

    Returns:
        [B], with gradients to the student alone.
    """
    with torch.no_grad():
        wanted = target(step(solver, levels, guide, x, here, there), there)
    return distance(metric, student(x, here).float(), wanted.float())


class ConsistencyDistillation(LessonSettings):
    """A student of one or a few steps that agrees with itself along its teacher's flow (CD)."""

    name: Literal["consistency"] = "consistency"
    intervals: PositiveInt = 39
    """Steps between noise and data, which levels are drawn from; the paper has 39 on EDM's levels."""
    solver: Solver = "heun"
    """Of the teacher's step: euler (which is DDIM) or heun, with twice the calls."""
    metric: Metric = "l2"
    """Distance between predictions."""
    weight: LevelWeight = "uniform"
    """Weight over noise levels."""
    target_decay: float = Field(0.95, ge=0, lt=1)
    """Of the moving average of the student that is its target; training.ema holds those to sample from."""

    @property
    def average_decay(self) -> float:
        return self.target_decay

    def lesson(self, own: Levels, theirs: Levels, teacher: Network) -> Lesson:
        """The loss of a student that speaks in `own` levels, of a teacher that speaks in `theirs`."""
        points = grid(own, self.intervals, theirs)

        def lesson(
            student: Callable[..., Any],
            average: Callable[..., Any],
            tokens: Tensor,
            label: Tensor,
            rng: SampleRng,
            update: int,
        ) -> dict[str, Tensor]:
            index = rng.integers(self.intervals)  # [B]
            here, there = points.to(tokens.device)[index], points.to(tokens.device)[index + 1]
            x = own.noised(tokens, rng.normal(*tokens.shape[1:]).to(tokens.dtype), here)
            guide = guided(theirs, teacher, label, self.teacher_guidance, own)
            ours, target = denoiser(own, student, label), denoiser(own, average, label)
            gap = agreement(own, ours, target, guide, x, here, there, self.solver, self.metric)
            return {"loss": level_weight(self.weight, ratio(own, here), 0.5) * gap, "distance": gap}

        return lesson

    def lesson_of(self, student: Generator, teacher: Generator, seed: int) -> Lesson:
        return self.lesson(student_levels(student.process), levels_of(teacher.process), teacher.network)
