"""Objectives of one student and a frozen teacher: the student's process with another loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from genlab.core.contracts import LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.settings import DistillationSettings
from genlab.processes.few_step import FewStep
from genlab.processes.levels import Levels, levels_of
from genlab.training.generation import GenerationObjective
from genlab.training.objective import Role
from genlab.training.settings import TrainingSettings
from samplers.noise import SampleRng


class Lesson(Protocol):
    """A loss of the student that asks its teacher."""

    def __call__(
        self,
        student: Callable[..., Any],
        average: Callable[..., Any],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        update: int,
    ) -> dict[str, Tensor]:
        """Named losses [B] at an update (0, 1, ...).

        Args:
            average: the student under its moving average, without gradients; where it has not asked for that, itself.
        """


@dataclass(frozen=True)
class Taught(Process):
    """A process that samples as `base` does and learns by `lesson`."""

    base: Process
    lesson: Lesson
    update: int = 0

    def at(self, step: int) -> Taught:
        """The process at update `step` (0, 1, ...)."""
        return replace(self, update=step)

    def loss(
        self,
        network: Callable[..., Tensor],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        average: Callable[..., Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return self.lesson(network, network if average is None else average, tokens, label, rng, self.update)

    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: Any,
        on_step: OnStep | None = None,
    ) -> Tensor:
        return self.base.sample(network, label, spec, rng, settings, on_step)


@dataclass(frozen=True)
class TaughtByAverage(Taught):
    """A process whose lesson asks the student's moving average too, which has this decay."""

    takes_average: ClassVar[bool] = True
    decay: float = 0.95

    @property
    def average_decay(self) -> Callable[[int], float]:
        return lambda _update: self.decay


class TaughtObjective(GenerationObjective):
    """Train a student by a lesson, its teacher frozen.

    Args:
        student: tokenizer (frozen), network (trained) and process.
        teacher: what the lesson asks; as a role it goes to the right device.
        target_decay: of the student's moving average, if the lesson asks it.
        classes: those that a student of several is to know, which no lesson here can do.
    """

    def __init__(
        self,
        student: Generator,
        teacher: Network,
        role: Role,
        lesson: Lesson,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None,
        target_decay: float | None = None,
    ):
        if classes is not None:
            raise ConfigError("distillation: several students of different classes learn by dmd2 only; use that")
        self.teacher = teacher
        plain = Taught(student.process, lesson)
        taught = plain if target_decay is None else TaughtByAverage(student.process, lesson, decay=target_decay)
        generator = replace(student, process=taught)
        super().__init__(generator, role, training.label_dropout, training.preview_count, seed)

    def roles(self) -> dict[str, Role]:
        return {**super().roles(), "teacher": Role(self.teacher)}


def student_levels(process: Process) -> Levels:
    """The noise levels in which a student speaks."""
    return levels_of(process.base if isinstance(process, FewStep) else process)


class LessonSettings(DistillationSettings):
    """Base of the `distillation:` sections whose student learns by a lesson."""

    drops_labels: ClassVar[bool] = True

    @property
    def average_decay(self) -> float | None:
        """The decay of the student's moving average, if the lesson asks it."""
        return None

    @abstractmethod
    def lesson_of(self, student: Generator, teacher: Generator, seed: int) -> Lesson:
        """The loss of `student`, whom `teacher` teaches."""

    def objective(
        self,
        student: Generator,
        teacher: Generator,
        role: Role,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None = None,
    ) -> TaughtObjective:
        """The student under its lesson. Raises ConfigError for classes."""
        lesson = self.lesson_of(student, teacher, seed)
        return TaughtObjective(student, teacher.network, role, lesson, training, seed, classes, self.average_decay)
