"""Which student owns which class: the partitions of multi-student distillation.

"Multi-student Diffusion Distillation for Better One-step Generators", Song et al. 2024 (arXiv 2410.23274): the classes
are split into disjoint parts of equal size, similar ones together. Consecutive ImageNet classes are similar already.

Letters: N classes, K students.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.files import write_text
from genlab.core.settings import Settings
from samplers.noise import spawn

FILE = "partition.json"  # in the folder of a run and of its export


class Partition(Settings):
    """N classes in K parts, none of them empty."""

    num_classes: int = Field(ge=1)
    students: int = Field(ge=1)
    class_to_student: tuple[int, ...]
    """Of each class, the student that owns it."""
    method: str
    seed: int | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.class_to_student) != self.num_classes:
            raise ValueError(f"{len(self.class_to_student)} classes have a student, of {self.num_classes}")
        if set(self.class_to_student) != set(range(self.students)):
            raise ValueError(f"the classes' students are not 0..{self.students - 1}, each with at least one class")
        return self

    def classes(self, student: int) -> list[int]:
        """What a student owns, in rising order."""
        return [label for label, owner in enumerate(self.class_to_student) if owner == student]

    def save(self, folder: Path) -> None:
        """Write `partition.json`."""
        write_text(folder / FILE, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a `partition.json`. Raises CheckpointError if it is absent or no partition."""
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"), strict=True)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error})") from error
        except ValidationError as error:
            raise CheckpointError(f"{file}: no partition of classes ({error.errors()[0]['msg']})") from None


def consecutive(num_classes: int, students: int) -> list[int]:
    """Student floor(c K / N) of each class c; also where K does not divide N."""
    return along(range(num_classes), num_classes, students)


def along(order: Sequence[int], num_classes: int, students: int) -> list[int]:
    """Student floor(r K / N) of the class at place r of an order of the data's classes 0..N-1.

    Raises:
        ConfigError: the order misses or repeats classes, or there are more students than classes.
    """
    count, known = Counter(order), set(range(num_classes))
    faults = {
        "misses": sorted(known - set(count)),
        "repeats": [label for label, times in count.items() if times > 1],
        "has the unknown": sorted(set(count) - known),
    }
    if any(faults.values()):
        told = ", ".join(f"{fault} {_few(labels)}" for fault, labels in faults.items() if labels)
        raise ConfigError(f"partition: not each of the data's classes 0..{num_classes - 1} once: it {told}")
    _check_counts(num_classes, students)
    owners = [0] * num_classes
    for rank, label in enumerate(order):
        owners[label] = rank * students // num_classes
    return owners


def at_random(num_classes: int, students: int, seed: int) -> list[int]:
    """Parts of equal size of classes in random order."""
    order = spawn(seed, range(num_classes)).uniform().argsort(stable=True).tolist()
    return along(order, num_classes, students)


def balanced(counts: Tensor, students: int) -> list[int]:
    """Consecutive parts with as equal numbers of images as can be, from the images [N] of each class.

    A class goes where the middle of its images falls among K equal shares of them all; no student is left without one.
    """
    num_classes = len(counts)
    _check_counts(num_classes, students)
    middle = counts.double().cumsum(0) - counts.double() / 2
    shares = (middle * students / counts.sum().clamp_min(1)).long().clamp(max=students - 1).tolist()
    owners: list[int] = []
    for label, share in enumerate(shares):
        before = owners[-1] if owners else -1
        still_needed = students - (num_classes - label)  # later classes must suffice for the later students
        owners.append(min(max(share, still_needed, before, 0), before + 1))
    return owners


def clustered(vectors: Tensor, students: int, seed: int) -> list[int]:
    """Parts of similar classes whose sizes differ by one at most, from a vector [N,D] for each class.

    K-means on the vectors at length 1; then class and centre are matched by increasing distance as long as there is
    room, ties to the lower number. Students are numbered by their first class.
    """
    from sklearn.cluster import KMeans  # imports for a second

    num_classes = len(vectors)
    _check_counts(num_classes, students)
    unit = F.normalize(vectors.detach().double().cpu(), dim=1).numpy()
    distances = torch.from_numpy(KMeans(students, n_init=10, random_state=seed).fit(unit).transform(unit))  # [N,K]
    least, larger = divmod(num_classes, students)  # so many parts have one class more than the least
    sizes, owners = [0] * students, [-1] * num_classes
    for pair in distances.flatten().argsort(stable=True).tolist():
        label, part = divmod(pair, students)
        if owners[label] < 0 and sizes[part] < least + (larger > 0):
            owners[label] = part
            sizes[part] += 1
            larger -= sizes[part] > least
    number = {part: rank for rank, part in enumerate(dict.fromkeys(owners))}
    return [number[part] for part in owners]


class ClassFacts(Protocol):
    """What a partition may ask about the classes; answered only when asked."""

    def counts(self) -> Tensor:
        """Images of each class, [N]."""

    def vectors(self, features: str) -> Tensor:
        """A vector [N,D] for each class; `features` as in Clustered."""


class Consecutive(Settings):
    """Classes in their order, in parts of equal size; ImageNet's order is one of similarity."""

    name: Literal["consecutive"] = "consecutive"

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        return _partition(consecutive(num_classes, students), students, self.name)


class Ordered(Settings):
    """Parts of equal size along an order of yours."""

    name: Literal["order"] = "order"
    classes: tuple[int, ...] = Field(min_length=1)
    """All classes, similar ones together."""

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        return _partition(along(self.classes, num_classes, students), students, self.name)


class FromFile(Settings):
    """A partition of yours, or of another run."""

    name: Literal["file"] = "file"
    path: Path
    """A partition.json; or a JSON list: an order of all classes, or for each student the list of its classes."""

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        found = read_file(self.path, num_classes, students)
        if (found.num_classes, found.students) != (num_classes, students):
            raise ConfigError(
                f"partition.path: {self.path} has {found.num_classes} classes for {found.students} students, this run "
                f"{num_classes} for {students}"
            )
        return found


class Random(Settings):
    """Parts of equal size at random; published as worse than similar classes together."""

    name: Literal["random"] = "random"
    seed: int = 0

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        return _partition(at_random(num_classes, students, self.seed), students, self.name, self.seed)


class Balanced(Settings):
    """Classes in their order, in parts with about as many images each: for classes of very different frequency."""

    name: Literal["balanced"] = "balanced"

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        return _partition(balanced(facts.counts(), students), students, self.name)


class Clustered(Settings):
    """Similar classes together, by K-means on a vector for each, in parts of equal size."""

    name: Literal["clustered"] = "clustered"
    features: str = "teacher"
    """teacher: the rows of its class table; or the mean of each class's images under an extractor of `genlab
    evaluate`, such as dinov2 or pixels."""
    seed: int = Field(default=0, ge=0, lt=2**32)

    def build(self, num_classes: int, students: int, facts: ClassFacts) -> Partition:
        owners = clustered(facts.vectors(self.features), students, self.seed)
        return _partition(owners, students, f"{self.name} by {self.features}", self.seed)


PartitionSettings: TypeAlias = Annotated[
    Consecutive | Ordered | FromFile | Random | Balanced | Clustered, Field(discriminator="name")
]
"""Told apart by `name`; each has `build(num_classes, students, facts) -> Partition`, which raises ConfigError."""


def read_file(path: Path, num_classes: int, students: int) -> Partition:
    """The partition in a file as FromFile describes; a partition.json says itself of how many classes.

    Raises:
        ConfigError: it cannot be read, or its lists are not of the data's classes.
        CheckpointError: a broken partition.json.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"partition.path: {path} cannot be read ({error})") from error
    if isinstance(content, dict):
        return Partition.load(path)
    if _is_list_of(int, content):
        return _partition(along(content, num_classes, students), students, "file")
    if not (isinstance(content, list) and content and all(_is_list_of(int, part) for part in content)):
        raise ConfigError(f"partition.path: {path} is no partition.json, list of classes, or list of such lists")
    order = [label for part in content for label in part]
    along(order, num_classes, 1)  # every class once
    owner = {label: student for student, part in enumerate(content) for label in part}
    return _partition([owner[label] for label in range(len(order))], len(content), "file")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _partition(owners: Sequence[int], students: int, method: str, seed: int | None = None) -> Partition:
    return Partition(
        num_classes=len(owners), students=students, class_to_student=tuple(owners), method=method, seed=seed
    )


def _check_counts(num_classes: int, students: int) -> None:
    if not 1 <= students <= num_classes:
        raise ConfigError(f"students={students} for {num_classes} classes: each student needs a class of its own")


def _few(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels[:5])) + (" ..." if len(labels) > 5 else "")
