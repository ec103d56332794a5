"""Consistency distillation in continuous time: the flow along which nothing may change is a teacher's.

"Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", Lu & Song, ICLR 2025 (arXiv 2410.11081),
section 4. The student's process is `continuous_consistency`, the teacher's `edm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.settings import Parts
from genlab.distillation.taught import Lesson, LessonSettings
from genlab.processes.continuous_consistency import ContinuousConsistency
from genlab.processes.edm import Edm
from samplers.noise import SampleRng


class ContinuousConsistencyDistillation(LessonSettings):
    """A student whose prediction does not change along its teacher's flow (sCD)."""

    name: Literal["continuous_consistency"] = "continuous_consistency"

    def check(self, student: Parts, teacher: Parts | None) -> None:
        """As all do; and the processes must be continuous_consistency and, of the teacher, edm. Raises ConfigError."""
        super().check(student, teacher)
        if not isinstance(student.process, ContinuousConsistency):
            raise ConfigError(
                f"process: got {type(student.process).__name__}; distillation continuous_consistency trains a student "
                "of process continuous_consistency"
            )
        if teacher is None:
            return
        sigma_data = getattr(teacher.process, "sigma_data", None)
        if not isinstance(teacher.process, Edm) or sigma_data != student.process.sigma_data:
            raise ConfigError(
                f"distillation.teacher: a {type(teacher.process).__name__} with sigma_data {sigma_data}; "
                f"continuous_consistency needs an edm with that of the student, {student.process.sigma_data:g}"
            )

    def lesson(self, process: ContinuousConsistency, teacher: Network) -> Lesson:
        """The loss of a student along the flow of `teacher`."""

        def lesson(
            student: Callable[..., Any],
            average: Callable[..., Any],
            tokens: Tensor,
            label: Tensor,
            rng: SampleRng,
            update: int,
        ) -> dict[str, Tensor]:
            flow = process.guided_velocity(teacher, label, self.teacher_guidance)
            return process.at(update).taught_loss(student, tokens, label, rng, flow)

        return lesson

    def lesson_of(self, student: Generator, teacher: Generator, seed: int) -> Lesson:
        assert isinstance(student.process, ContinuousConsistency), "check has seen to it"
        return self.lesson(student.process, teacher.network)
