"""Multi-student distillation as one run: its students' runs below it, one after another or by themselves, one export.

RUN/partition.json         which student owns which class
RUN/students/K/            the ordinary run of student K, with the partition it was trained under
RUN/export/                all of them as one generator, once every student is there
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genlab import config as configs
from genlab import pretrained
from genlab.commands.devices import process_state
from genlab.config import RunConfig
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.files import whole_folder, write_text
from genlab.core.weights import read_tensors
from genlab.data.loader import Source
from genlab.distillation.class_facts import MeasuredFacts
from genlab.distillation.partition import FILE, Partition
from genlab.distillation.students import MultiStudentSettings, seed_of
from genlab.evaluation.protocols import EvaluationSettings
from genlab.training import checkpoint

FOLDER = "students"
_SHARED = ("tokenizer_fingerprint", "network", "process", "image_size", "num_classes", "class_names")
Train = Callable[[RunConfig, Path, tuple[int, ...]], bool]
"""(a student's config, its run folder, its classes) -> whether it has finished; False: it was asked to stop."""


def train_students(
    config: RunConfig, source: Source, folder: Path, train: Train, student: int | None = None, dry_run: bool = False
) -> None:
    """Train the students that are not finished yet, and export them together once all are.

    Args:
        config: whose `distillation` is MultiStudentSettings.
        student: train this one alone, as one job of an array. Jobs of different students do not meet.
        dry_run: the first student's, and nothing is written.

    Raises:
        GenlabError: see `genlab.commands.train`; and a folder whose students have another partition.
    """
    settings = _settings(config)
    if student is not None and student >= settings.students:
        raise ConfigError(f"--student {student}: the recipe has students 0..{settings.students - 1}")
    chosen = range(settings.students) if student is None else [student]
    state = process_state()
    with state.main_process_first():
        partition = _find_partition(config, source, folder)
        if state.is_main_process and not dry_run:
            write_text(folder / "config.yaml", configs.dump(config))
            partition.save(folder)
    if dry_run:
        first = chosen[0]
        train(student_config(config, first), student_folder(folder, first), tuple(partition.classes(first)))
        print(f"{len(chosen)} of {settings.students} students like this one")
        return
    for number in chosen:
        own = student_folder(folder, number)
        if _finished(own, config):
            continue
        if state.is_main_process:
            _bind(own, partition, Path(settings.of(number).init))
            print(f"student {number} of {settings.students}: classes {partition.classes(number)}")
        if not train(student_config(config, number), own, tuple(partition.classes(number))):
            return
    if state.is_main_process:
        missing = [k for k in range(settings.students) if not _finished(student_folder(folder, k), config)]
        if missing:
            print(f"still to be trained: students {', '.join(map(str, missing))} (--student K, or all without it)")
        else:
            print(f"all {settings.students} students in {export(folder)}; next: genlab evaluate {folder}")


def student_folder(folder: Path, student: int) -> Path:
    """The run of one student."""
    return folder / FOLDER / str(student)


def student_config(config: RunConfig, student: int) -> RunConfig:
    """The recipe of one student: its own seed, and no scores, which would be of all classes."""
    changes = {
        "name": f"{config.name[:90]}-student{student}",
        "seed": seed_of(config.seed, student),
        "distillation": _settings(config).of(student),
        "evaluation": EvaluationSettings(),
        "expected": (),
    }
    return config.model_copy(update=changes)


def holds_students(folder: Path) -> bool:
    """Whether a folder is the run of several students."""
    return (folder / FILE).is_file() and (folder / FOLDER).is_dir()


def export(folder: Path) -> Path:
    """Write `folder/export`: one generator whose network sends each class to its student.

    Raises:
        CheckpointError: a student is missing or damaged, was trained under another partition, or differs from the
            others in tokenizer, network or process.
    """
    partition = Partition.load(folder / FILE)
    exports = [_export_one(student_folder(folder, k), partition) for k in range(partition.students)]
    absent = [str(k) for k, place in enumerate(exports) if place is None]
    if absent:
        raise CheckpointError(
            f"{folder}: student {', '.join(absent)} of {partition.students} has no weights yet; train with --student K"
        )
    places = [place for place in exports if place is not None]
    descriptions = [_describe(place) for place in places]
    _check_alike(descriptions, folder)
    network = {
        "name": "routed",
        "student": descriptions[0]["network"],
        "class_to_student": [*partition.class_to_student],
    }
    description = {
        **descriptions[0],
        "name": folder.name,
        "network": network,
        "distilled": {**descriptions[0].get("distilled", {}), "by": "multi_student", "students": len(places)},
        "images": sum(one["images"] for one in descriptions),
    }
    weights = {
        f"students.{k}.{name}": value
        for k, place in enumerate(places)
        for name, value in read_tensors(place / "network.safetensors").items()
    }
    with whole_folder(folder / "export") as made:
        pretrained.write(made, description, weights, ("images",))
        partition.save(made)
    return folder / "export"


def _settings(config: RunConfig) -> MultiStudentSettings:
    assert isinstance(config.distillation, MultiStudentSettings)
    return config.distillation


def _find_partition(config: RunConfig, source: Source, folder: Path) -> Partition:
    """That of the folder, made by the same settings, or a new one. Raises CheckpointError for other settings."""
    if (folder / FILE).is_file() and (folder / "config.yaml").is_file():
        saved = configs.load_run(folder / "config.yaml")
        checkpoint.match_identity(config.identity(), saved.identity(), folder)
        return Partition.load(folder / FILE)
    settings = _settings(config)
    facts = MeasuredFacts(
        source, lambda: pretrained.from_pretrained(settings.teacher, trust=True).network, process_state().device
    )
    return settings.partition.build(source.num_classes, settings.students, facts)


def _bind(own: Path, partition: Partition, init: Path) -> None:
    """Put the partition beside a student. Raises CheckpointError if it, or what it starts from, knows another."""
    for place in (own, init):
        if (place / FILE).is_file() and not (place / FOLDER).is_dir():
            _check_partition(place, partition)
    partition.save(own)


def _check_partition(own: Path, partition: Partition) -> None:
    if Partition.load(own / FILE).class_to_student != partition.class_to_student:
        raise CheckpointError(
            f"{own}: trained under another partition of the classes than the run's; choose another name=NAME or init"
        )


def _finished(own: Path, config: RunConfig) -> bool:
    newest, _ = checkpoint.latest(own / "checkpoints")
    return newest is not None and checkpoint.read_state(newest)["images"] >= config.training.total


def _export_one(own: Path, partition: Partition) -> Path | None:
    """The export of one student, from its newest checkpoint where it has any; None if there is nothing."""
    if not (own / FILE).is_file():
        return None
    _check_partition(own, partition)
    if checkpoint.list_checkpoints(own / "checkpoints"):
        return pretrained.export(own)
    return own / "export" if (own / "export" / "config.json").is_file() else None


def _describe(place: Path) -> dict[str, Any]:
    """What an export says of itself, with the path of a tokenizer that it holds."""
    try:
        description: dict[str, Any] = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: damaged ({error})") from error
    if (place / "tokenizer").is_dir():
        description["tokenizer"]["path"] = str(place / "tokenizer")
    return description


def _check_alike(descriptions: Sequence[dict[str, Any]], folder: Path) -> None:
    for number, one in enumerate(descriptions[1:], start=1):
        differing = [key for key in _SHARED if one[key] != descriptions[0][key]]
        if differing:
            raise CheckpointError(
                f"{folder}: students 0 and {number} differ in {', '.join(differing)}; they must be of one recipe"
            )
