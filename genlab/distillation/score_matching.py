"""Teacher score matching: a smaller network learns to say what its teacher says, at all noise levels.

The stage that a student goes through before distribution matching if it cannot start from the teacher's weights:
"Multi-student Diffusion Distillation for Better One-step Generators", Song et al. 2024 (arXiv 2410.23274). Its result
is an ordinary denoiser. The weight over noise levels is not published; here it is plain mean squared error of what the
networks put out, which for EDM's preconditioned networks is EDM's weighted error of the expected data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genlab.core.contracts import Batch, Network, Process
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.settings import DistillationSettings, Parts
from genlab.processes.edm import Edm
from genlab.processes.levels import levels_of
from genlab.training.generation import GenerationObjective
from genlab.training.objective import Networks, Role
from genlab.training.settings import TrainingSettings
from samplers.noise import SampleRng


class ScoreMatchingSettings(DistillationSettings):
    """The `distillation:` section of a smaller denoiser that matches its teacher.

    The recipe's process is the teacher's, and its training.label_dropout should be too: what the student can be guided
    away from, it must have heard.
    """

    drops_labels: ClassVar[bool] = True

    name: Literal["score_matching"] = "score_matching"
    init: str = "fresh"
    """Where the student's weights come from: fresh, or a generator of the same architecture."""
    warm_start: bool = True
    """Put slices of the teacher's weights into a fresh student, wherever names and numbers of dimensions agree."""

    def check(self, student: Parts, teacher: Parts | None) -> None:
        super().check(student, teacher)
        levels_of(student.process)
        if self.teacher_guidance != 1:
            raise ConfigError(
                "distillation.teacher_guidance: a student that matches scores learns to be guided as its teacher is; "
                f"got {self.teacher_guidance:g}, leave it out"
            )
        if isinstance(student.process, Edm) and student.process.uncertainty:
            raise ConfigError("process.uncertainty: a student that matches its teacher has none; set it to false")
        if teacher is not None and student.process != teacher.process:
            raise ConfigError(
                "distillation: score_matching keeps the teacher's process, of which this one differs in "
                f"{', '.join(_differing(student.process, teacher.process))}"
            )

    def objective(
        self,
        student: Generator,
        teacher: Generator,
        role: Role,
        training: TrainingSettings,
        seed: int,
        classes: tuple[int, ...] | None = None,
    ) -> ScoreMatchingObjective:
        """As DistillationSettings has it; the labels are those of the data, whatever `classes` says."""
        self.check(Parts.of(student), Parts.of(teacher))
        if self.init == "fresh" and self.warm_start:
            warm_start(student.network, teacher.network)
        return ScoreMatchingObjective(
            student, teacher.network, role, training.label_dropout, training.preview_count, seed
        )


def _differing(process: Process, other: Process) -> list[str]:
    """What differs between two processes: settings, or the kind itself."""
    if type(process) is not type(other):
        return ["name"]
    return [key for key, value in vars(process).items() if value != vars(other)[key]]


def matching(
    student: Callable[..., Any], teacher: Callable[..., Any], process: Callable[[Callable[..., Any]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Named losses [B]: "loss", how far the student is from the teacher, and "data", its own error on the data.

    Args:
        process: a network -> the process's losses; what it asks the network is what both are asked.
    """
    gaps: list[Tensor] = []

    def both(x: Tensor, t: Tensor, label: Tensor, **options: Any) -> Any:
        with torch.no_grad():
            wanted = teacher(x, t, label, **options)
        out = student(x, t, label, **options)
        gaps.append(_distance(out, wanted, x.shape[1]))
        return out

    data = process(both)["loss"].detach()
    return {"loss": gaps[0], "data": data}


def _distance(out: Any, wanted: Any, channels: int) -> Tensor:
    """Mean squared error [B], summed over resolutions (DiMR) and over prediction and variance (learned variances)."""
    pairs: Sequence[tuple[Tensor, Tensor]] = (
        [(out, wanted)] if isinstance(out, Tensor) else list(zip(out, wanted, strict=True))
    )
    errors = [(ours - theirs).float().square().flatten(2).mean(2) for ours, theirs in pairs]  # [B,C'] each
    return torch.stack([part.mean(1) for error in errors for part in error.split(channels, dim=1)]).sum(0)


class ScoreMatchingObjective(GenerationObjective):
    """Train a generator's network to match a frozen teacher, on noised data and with its labels dropped as usual.

    Args:
        generator: the student: tokenizer (frozen), network (trained) and the teacher's process.
        teacher: a network of the same classes over the same tokens.
        role, label_dropout, preview_count, preview_seed: as GenerationObjective has them.
    """

    def __init__(
        self,
        generator: Generator,
        teacher: Network,
        role: Role,
        label_dropout: float,
        preview_count: int = 64,
        preview_seed: int = 0,
    ):
        super().__init__(generator, role, label_dropout, preview_count, preview_seed)
        self.teacher = teacher

    def roles(self) -> dict[str, Role]:
        return {**super().roles(), "teacher": Role(self.teacher)}

    def _loss(self, process: Process, networks: Networks, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        def losses(network: Callable[..., Any]) -> dict[str, Tensor]:
            return super(ScoreMatchingObjective, self)._loss(process, {**networks, "network": network}, batch, rng)

        return matching(networks["network"], networks["teacher"], losses)


@torch.no_grad()
def warm_start(student: Network, teacher: Network) -> int:
    """Copy what the two have in common into the student: evenly spaced rows and columns of equally named parameters.

    Even spacing keeps fused projections (queries, keys, values; shifts, scales, gates) and sine-cosine features apart.

    Returns:
        How many parameters got the teacher's values.
    """
    source, copied = dict(teacher.named_parameters()), 0
    for name, target in student.named_parameters():
        if name not in source or source[name].dim() != target.dim():
            continue
        value = source[name].data
        if any(ours > theirs for ours, theirs in zip(target.shape, value.shape)):
            continue
        for dim, size in enumerate(target.shape):
            value = value.index_select(dim, torch.arange(size, device=value.device) * value.shape[dim] // size)
        target.copy_(value)
        copied += target.numel()
    return copied
