"""Multi-student distillation: several few-step generators, each distilled for its own part of the classes.

"Multi-student Diffusion Distillation for Better One-step Generators", Song et al. 2024 (arXiv 2410.23274). The students
are ordinary runs of DMD2 that share nothing but their teacher; `genlab.networks.routed` makes one network of them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genlab.core.settings import Settings
from genlab.distillation.dmd2 import Dmd2Settings
from genlab.distillation.partition import Consecutive, PartitionSettings
from genlab.distillation.settings import Parts
from samplers.noise import spawn

PLACE = "{student}"  # in a path of `each`: the number of the student


class MultiStudentSettings(Settings):
    """The `distillation:` section of several students."""

    name: Literal["multi_student"] = "multi_student"
    students: int = Field(ge=1, le=10_000)
    partition: PartitionSettings = Consecutive()
    """Which student owns which class."""
    each: Dmd2Settings
    """How each of them is distilled. A `{student}` in `init` or `critic` stands for its number, so that students can
    begin where those of an earlier run have ended: init: runs/NAME/students/{student}."""

    @property
    def teacher(self) -> str:
        """The students' common teacher."""
        return self.each.teacher

    @property
    def recipe(self) -> str | None:
        """The config that trains the teacher."""
        return self.each.recipe

    @property
    def drops_labels(self) -> bool:
        """Whether students also train without their labels."""
        return self.each.drops_labels

    def check(self, student: Parts, teacher: Parts | None) -> None:
        """Whether one student fits the teacher, see DistillationSettings. Raises ConfigError."""
        self.each.check(student, teacher)

    def of(self, student: int) -> Dmd2Settings:
        """The settings of one student."""
        paths = {"init": self.each.init, "critic": self.each.critic}
        named = {key: path.replace(PLACE, str(student)) for key, path in paths.items() if path is not None}
        return self.each.model_copy(update=named)


def seed_of(seed: int, student: int) -> int:
    """The seed of a student's run: without one of its own it would draw the same noise as all others."""
    return int(spawn(seed, [student]).integers(2**53))
