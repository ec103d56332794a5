"""Several networks that each know some of the classes, as one: every sample is computed by the owner of its class.

"Multi-student Diffusion Distillation for Better One-step Generators", Song et al. 2024 (arXiv 2410.23274): capacity
grows with the number of students, while a sample still costs one pass of one of them.

Letters: B batch, N classes, K students.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, GenlabError
from genlab.core.settings import Settings

S = TypeVar("S", bound=Settings)


class Routed(Network):
    """`forward(x[B,...], t[B], label[B])` as its students have it. There is no student for "no class".

    Args:
        students: K networks for the same N classes.
        class_to_student: of each class, the student that owns it, in 0..K-1.
    """

    def __init__(self, students: Sequence[Network], class_to_student: Sequence[int]):
        super().__init__()
        self.num_classes = len(class_to_student)
        self.students = nn.ModuleList(students)
        owners = torch.tensor([*class_to_student, len(students)])  # the null label's is nobody
        self.register_buffer("owners", owners, persistent=False)  # int64 [N+1]

    owners: Tensor

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The samples grouped by student, one pass of each student that has any, and back in order.

        Waits for the device once, to learn how many samples each student has.

        Raises:
            GenlabError: a sample without a class.
        """
        owner = self.owners[label]  # [B]
        *counts, homeless = torch.bincount(owner, minlength=len(self.students) + 1).tolist()
        if homeless:
            raise GenlabError(
                "these are several students, each of which knows some of the classes: a sample without a class has no "
                "student; name a class, and sample with guidance 1"
            )
        if len(x) in counts:  # all of one student's classes: nothing to sort
            return self.students[counts.index(len(x))](x, t, label)
        order = owner.argsort(stable=True)  # [B]
        groups = zip(x[order].split(counts), t[order].split(counts), label[order].split(counts))
        grouped = torch.cat([student(*group) for student, group in zip(self.students, groups) if len(group[0])])
        return torch.empty_like(grouped).index_copy_(0, order, grouped)


class RoutedConfig(Settings, Generic[S]):
    """The students of a multi-student distillation; made by `genlab train`, not by hand."""

    name: Literal["routed"] = "routed"
    student: SerializeAsAny[S]
    """The network that each of them is."""
    class_to_student: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Of each class, the student that owns it."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""
    null_row: ClassVar[bool] = False
    """Nobody is asked for "no class"."""

    @model_validator(mode="after")
    def _all_needed(self) -> Self:
        if set(self.class_to_student) != set(range(self.students)):
            raise ValueError(f"class_to_student leaves some of {self.students} students without a class")
        return self

    @property
    def students(self) -> int:
        """K."""
        return max(self.class_to_student) + 1

    def build(self, spec: LatentSpec, num_classes: int) -> Routed:
        """The network for latents of `spec`. Raises ConfigError for another number of classes than it knows."""
        if num_classes != len(self.class_to_student):
            raise ConfigError(
                f"network routed knows the students of {len(self.class_to_student)} classes: got {num_classes} classes"
            )
        student: Any = self.student
        return Routed([student.build(spec, num_classes) for _ in range(self.students)], self.class_to_student)
