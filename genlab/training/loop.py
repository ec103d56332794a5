"""The training loop: any objective of roles and turns, through Accelerate.

It reads in the order in which a run happens: prepare the roles, restore, then step by step: micro-batches, backward,
check, clip, update, averages, log, pictures, checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genlab.core.contracts import Batch
from genlab.core.errors import ConfigError, NonFinite
from genlab.training import checkpoint, snapshots
from genlab.training.log import Log
from genlab.training.member import Member
from genlab.training.objective import Objective, Turn
from genlab.training.settings import TrainingSettings
from genlab.training.stop import StopRequest
from samplers.noise import SampleRng

Batches = Callable[[int, int], Iterator[Batch]]
"""(first global position, micro-batch per process) -> this process's micro-batches, without end."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls besides training; each on all processes, with the first averages in place of the weights."""

    preview: Callable[[int], None] | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None
    evaluate_every: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    images: int
    finished: bool
    """False: a signal asked it to stop; the last checkpoint holds all that was done."""
    checkpoint: Path


class Loop:
    """One run of one objective.

    Args:
        objective: what to train.
        batches: the data, see `Batches`.
        settings: how.
        seed: of all random numbers of the training.
        folder: the run's folder; `checkpoints/`, `averages/` and `log.jsonl` go there.
        accelerator: set up for the settings' precision.
        identity: JSON-able description of what must agree for a checkpoint to be continued.
        hooks: pictures and scores while training.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        settings: TrainingSettings,
        seed: int,
        folder: Path,
        accelerator: Accelerator,
        identity: dict[str, Any],
        hooks: Hooks,
    ):
        self.objective, self.batches, self.settings, self.seed = objective, batches, settings, seed
        self.checkpoints, self.averages, self.log_file = (
            folder / "checkpoints",
            folder / "averages",
            folder / "log.jsonl",
        )
        self.accelerator, self.identity, self.hooks = accelerator, identity, hooks
        self.images = 0
        self.micro, self.accumulation = self._split_batch()
        self.members: dict[str, Member] = {}
        self.frozen: dict[str, torch.nn.Module] = {}
        self._prepare()

    def _split_batch(self) -> tuple[int, int]:
        world, batch = self.accelerator.num_processes, self.settings.batch
        if batch % world:
            raise ConfigError(f"training.batch={batch} does not divide among {world} processes")
        micro = self.settings.micro_batch or batch // world
        if (batch // world) % micro:
            raise ConfigError(f"training.micro_batch={micro} does not divide each process's share of {batch // world}")
        return micro, batch // world // micro

    def _prepare(self) -> None:
        for name, role in self.objective.roles().items():
            if role.optimizer is None:
                self.frozen[name] = role.network.to(self.accelerator.device).eval().requires_grad_(False)
            else:
                role.network.to(self.accelerator.device).train()
                self.members[name] = Member(name, role, self.accelerator, self.settings.compile)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises CheckpointError if it is damaged or of another run."""
        state = checkpoint.read_state(folder)
        checkpoint.match_identity(self.identity, state["identity"], folder)
        for member in self.members.values():
            member.load(folder, state["counters"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.images = state["images"]

    def run(self) -> Outcome:
        """Train to the end or until a signal. The state is saved in both cases."""
        every = self.settings.checkpoint_every or max(self.settings.total // 10, 1)
        figures = self.objective.figures
        log = Log(self.accelerator, self.log_file, self.settings.total, self.images, self.settings.log_every, figures)
        batches = self.batches(self.images, self.micro)
        saved = self.images
        with StopRequest().listening() as stop:
            stopping = False
            while self.images < self.settings.total and not stopping:
                values, stopping = self.step(batches, bool(stop))
                log.step(self.images, values, self._rate())
                self._call_hooks(log)
                self._keep_averages()
                if self.images // every > saved // every:
                    saved = self._save()
            if saved != self.images or not checkpoint.list_checkpoints(self.checkpoints):
                self._save()
        log.close()
        return Outcome(self.images, self.images >= self.settings.total, self.checkpoints / f"{self.images:09d}")

    def step(self, batches: Iterator[Batch], stop: bool = False) -> tuple[dict[str, float], bool]:
        """One step of all turns: the reduced losses and gradient norms, and whether any process was asked to stop.

        Raises:
            NonFinite: a loss or gradient is not finite, on all processes at once and before any weight changes.
        """
        micros = [next(batches).to(self.accelerator.device) for _ in range(self.accumulation)]
        values: dict[str, float] = {}
        stopping = False
        for number, turn in enumerate(self.objective.turns(self.images // self.settings.batch)):
            turn_values, stop_seen = self._turn(turn, number, micros, stop)
            values |= turn_values if len(self.members) == 1 else {f"{turn.role}/{k}": v for k, v in turn_values.items()}
            stopping |= stop_seen
        self.images += self.settings.batch
        return values, stopping

    def _turn(self, turn: Turn, number: int, micros: list[Batch], stop: bool) -> tuple[dict[str, float], bool]:
        member = self.members[turn.role]
        member.set_rate(self._factor(), self.images / max(self.settings.total - self.settings.batch, 1))
        means = self._backward(turn, number, micros, member)
        norm = member.gradient_norm()
        values, stopping = self._reduce(means, norm, stop)
        self._check_finite(values, turn.role)
        member.update()
        return values, stopping

    def _backward(self, turn: Turn, number: int, micros: list[Batch], member: Member) -> dict[str, Tensor]:
        """Accumulate the gradients of one turn; the mean of each named loss."""
        networks = {**self.frozen, **{name: other.bare for name, other in self.members.items()}}
        networks[turn.role] = member.wrapped
        networks |= {f"{name}.average": other.average for name, other in self.members.items() if other.average}
        others = [other for name, other in self.members.items() if name != turn.role]
        means: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for parameter in (parameter for other in others for parameter in other.parameters):
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
            for index, batch in enumerate(micros):
                last = index == len(micros) - 1
                with nullcontext() if last else self.accelerator.no_sync(member.wrapped):
                    rng = SampleRng(self.seed, batch.position).fork(number)
                    with self.accelerator.autocast():
                        losses = turn.loss(networks, batch, rng)
                    self.accelerator.backward(losses["loss"].mean() / len(micros))
                for name, value in losses.items():
                    means[name] = means.get(name, 0.0) + value.detach().float().mean() / len(micros)
        return means

    def _reduce(self, means: dict[str, Tensor], norm: Tensor, stop: bool) -> tuple[dict[str, float], bool]:
        """Mean over processes of all values and of the stop flag: one small message, one wait for the device."""
        packed = torch.stack(
            [*(value.to(norm.device) for value in means.values()), norm.float(), norm.new_tensor(float(stop))]
        )
        if self.accelerator.num_processes > 1:
            packed = self.accelerator.reduce(packed, "mean")
        *values, stopping = packed.tolist()
        return dict(zip([*means, "grad_norm"], values)), stopping > 0

    def _check_finite(self, values: dict[str, float], role: str) -> None:
        scaling = (
            self.accelerator.scaler is not None
        )  # fp16: an overflowing gradient skips the step and lowers the scale
        for name, value in values.items():
            if not torch.tensor(value).isfinite() and not (scaling and name == "grad_norm"):
                step = self.images // self.settings.batch
                what = "the gradient norm" if name == "grad_norm" else f"the term {name!r}"
                raise NonFinite(
                    f"{what} of {role!r} is {value} at step {step} ({self.images} images): stopped before the update."
                    f" The last checkpoint in {self.checkpoints} is sound; a lower lr, clip_norm=1, warm-up or"
                    " precision=bf16/fp32 usually helps"
                )

    def _factor(self) -> float:
        return self.settings.schedule.factor(self.images, self.settings.total)

    def _rate(self) -> float:
        return self.settings.lr * self.settings.schedule.factor(self.images - self.settings.batch, self.settings.total)

    def _call_hooks(self, log: Log) -> None:
        before, last = self.images - self.settings.batch, self.images >= self.settings.total
        preview_every = self.settings.preview_every or max(self.settings.total // 10, 1)
        if self.hooks.preview and (last or self.images // preview_every > before // preview_every):
            with self.averaged():
                self.hooks.preview(self.images)
        every = self.hooks.evaluate_every
        if self.hooks.evaluate and every and (last or self.images // every > before // every):
            with self.averaged():
                scores = self.hooks.evaluate(self.images)
            log.write(self.images, scores)

    def averaged(self) -> ExitStack:
        """A context in which every role holds its first average and is in evaluation mode."""
        stack = ExitStack()
        for member in self.members.values():
            member.bare.eval()
            stack.callback(member.bare.train)
            if member.emas:
                stack.enter_context(member.emas[0].swapped())
        return stack

    def _keep_averages(self) -> None:
        every = self.settings.snapshot_every or max(self.settings.total // 32, 1)
        before, last = self.images - self.settings.batch, self.images >= self.settings.total
        if self.settings.ema_power and (last or self.images // every > before // every):
            taken = [snapshot for member in self.members.values() for snapshot in member.snapshots()]
            if self.accelerator.is_main_process:
                snapshots.save(self.averages, self.images, taken)

    def _save(self) -> int:
        tensors = {stem: group for member in self.members.values() for stem, group in member.tensors()}
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            counters = {key: value for member in self.members.values() for key, value in member.counters().items()}
            state = {"identity": self.identity, "counters": counters, "scaler": scaler, "torch": torch.__version__}
            checkpoint.save(self.checkpoints, self.images, tensors, state)
            checkpoint.prune(self.checkpoints, self.settings.keep_last, self.settings.keep_every)
        self.accelerator.wait_for_everyone()
        return self.images
