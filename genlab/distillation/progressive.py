"""Progressive distillation: a student's step does what two steps of its teacher do.

"Progressive Distillation for Fast Sampling of Diffusion Models", Salimans & Ho, ICLR 2022 (arXiv 2202.00512). A run is
one halving; the next run has this one's student for its teacher and half as many steps. The student samples by euler
(DDIM) with as many steps as it was trained for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from genlab.core.contracts import Network
from genlab.core.generator import Generator
from genlab.distillation.taught import Lesson, LessonSettings, student_levels
from genlab.distillation.teacher_steps import Predict, denoiser, grid, guided, implied_data, ratio, step
from genlab.processes.consistency_pairs import LevelWeight, level_weight
from genlab.processes.distances import Metric, distance
from genlab.processes.levels import Levels, levels_of
from samplers.noise import SampleRng


class Halved(NamedTuple):
    """Two steps of a teacher, and what the student should say to make them in one; all [B,C,H,W]."""

    middle: Tensor
    end: Tensor
    data: Tensor


@torch.no_grad()
def halved(levels: Levels, teacher: Predict, x: Tensor, here: Tensor, middle: Tensor, there: Tensor) -> Halved:
    """The target at (x, here); levels [B] from noise to data."""
    first = step("euler", levels, teacher, x, here, middle)
    end = step("euler", levels, teacher, first, middle, there)
    return Halved(first, end, implied_data(levels, x, end, here, there))


def steps_of_stage(update: int, first: int, stage_updates: int = 50_000) -> int:
    """The student's steps at `update` of one long run, as the public code of consistency models halves them.

    Every stage takes `stage_updates`, but those of 2 steps and of 1 take twice as many.
    """
    whole = int(math.log2(first)) - 1  # stages before that of 2 steps
    if update < whole * stage_updates:
        return first >> (update // stage_updates)
    return min(first, 2) if update < (whole + 2) * stage_updates and first > 1 else 1


class ProgressiveDistillation(LessonSettings):
    """One halving of the number of steps."""

    name: Literal["progressive"] = "progressive"
    steps: PositiveInt
    """Of the student, over the levels of its process; the teacher's are twice as many."""
    metric: Metric = "l2"
    """Distance between predictions of the data."""
    weight: LevelWeight = "truncated_snr"
    """Weight over noise levels."""

    def lesson(self, own: Levels, theirs: Levels, teacher: Network) -> Lesson:
        """The loss of a student that speaks in `own` levels, of a teacher that speaks in `theirs`."""
        points = grid(own, 2 * self.steps, theirs)

        def lesson(
            student: Callable[..., Any],
            average: Callable[..., Any],
            tokens: Tensor,
            label: Tensor,
            rng: SampleRng,
            update: int,
        ) -> dict[str, Tensor]:
            index = 2 * rng.integers(self.steps)  # [B]
            here, middle, there = (points.to(tokens.device)[index + late] for late in range(3))
            x = own.noised(tokens, rng.normal(*tokens.shape[1:]).to(tokens.dtype), here)
            guide = guided(theirs, teacher, label, self.teacher_guidance, own)
            target = halved(own, guide, x, here, middle, there).data
            gap = distance(self.metric, denoiser(own, student, label)(x, here).float(), target.float())
            return {"loss": level_weight(self.weight, ratio(own, here), 0.5) * gap, "distance": gap}

        return lesson

    def lesson_of(self, student: Generator, teacher: Generator, seed: int) -> Lesson:
        return self.lesson(student_levels(student.process), levels_of(teacher.process), teacher.network)
