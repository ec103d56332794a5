"""What all `distillation:` sections have in common: a teacher, how the student starts, and what must fit."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from pydantic import Field

from genlab.core.contracts import LatentSpec, Network, Process
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.core.settings import Settings
from genlab.processes.few_step import FewStep
from genlab.processes.levels import levels_of
from genlab.training.objective import Objective, Role
from genlab.training.settings import TrainingSettings


class Parts(NamedTuple):
    """What can be compared of a generator before it has weights; the network may be on the meta device."""

    spec: LatentSpec
    network: Network
    process: Process

    @classmethod
    def of(cls, generator: Generator) -> Parts:
        """Those of a generator."""
        return cls(generator.tokenizer.spec, generator.network, generator.process)


class DistillationSettings(Settings):
    """A student that learns from a trained generator. Subclasses add a `name`, what they weigh, and `objective`."""

    drops_labels: ClassVar[bool] = False
    """Whether students also train without their labels, as often as training.label_dropout says."""

    teacher: str
    """A trained denoiser: a run folder, an export or a hub repository."""
    recipe: str | None = None
    """The config that trains the teacher: what is checked while `teacher` is not there yet."""
    init: str = "teacher"
    """Where the student's weights come from: teacher (of the same architecture and process), fresh, or a generator of
    the same architecture."""
    teacher_guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance of the teacher, which the student takes over; 1 is none and costs half."""

    def check(self, student: Parts, teacher: Parts | None) -> None:
        """Whether the two fit; `teacher` is None while nothing is known of it.

        Raises:
            ConfigError: another latent space, resolution or number of classes, a process without noise levels, or a
                student that cannot start from the teacher.
        """
        if teacher is None:
            return
        mine, theirs = student.spec, teacher.spec
        if mine.shape != theirs.shape or mine.fingerprint != theirs.fingerprint:
            raise ConfigError(
                f"distillation.teacher: works on {theirs.image_size} x {theirs.image_size} images as latents "
                f"{theirs.shape} of tokenizer {theirs.fingerprint}, the student on {mine.image_size} x "
                f"{mine.image_size} as {mine.shape} of {mine.fingerprint}; give both the same data and tokenizer"
            )
        if student.network.num_classes != teacher.network.num_classes:
            raise ConfigError(
                f"distillation.teacher: knows {teacher.network.num_classes} classes, the data has "
                f"{student.network.num_classes}; distil on the teacher's classes"
            )
        try:
            levels = levels_of(teacher.process)
        except ConfigError as error:
            raise ConfigError(f"distillation.teacher: {error}") from None
        if self.teacher_guidance != 1:
            _ = teacher.network.null_label  # raises for a network that knows no "no class"
        if self.init == "teacher":
            base = student.process.base if isinstance(student.process, FewStep) else student.process
            if shapes(student.network) != shapes(teacher.network):
                raise ConfigError(
                    "distillation.init: the student is of another architecture than the teacher; set init to fresh, or "
                    "to a generator of the student's architecture"
                )
            if levels_of(base).language != levels.language:
                raise ConfigError(
                    f"distillation.init: the student's process {levels_of(base).language} is not the teacher's "
                    f"{levels.language}; make them the same, or set init to fresh"
                )

    def others(self) -> dict[str, str]:
        """Further generators that `objective` takes, by the name of the argument: where they are."""
        return {}

    @abstractmethod
    def objective(
        self,
        student: Generator,
        teacher: Generator,
        role: Role,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None = None,
    ) -> Objective:
        """What the loop trains.

        Args:
            student: with the weights it starts from; its network is in the role "network", which is exported.
            role: how that network is updated.
            seed: of the run.
            classes: those that the student is to know; by default all of the network's.
        """


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a network's state: equal for equal architectures and sizes."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
