"""A role at run time: its network under Accelerate, optimizer and averages, and how they are saved and restored."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from genlab.core import weights
from genlab.core.errors import ConfigError
from genlab.training.ema import Average, Ema, PowerEma, Target, view
from genlab.training.objective import Role
from genlab.training.snapshots import Snapshot


class Member:
    """A trainable role.

    Attributes:
        wrapped: the network to call on this role's own turn (DDP, FSDP); under a full shard, always.
        bare: the network as the objective holds it.
        average: the network under the average that losses call, for roles that ask for it.
        emas: the averages to sample from; `kept` are all.
    """

    def __init__(self, name: str, role: Role, accelerator: Accelerator, compile: bool):
        assert role.optimizer is not None
        self.name, self.role, self.accelerator = name, role, accelerator
        self.bare: nn.Module = role.network
        if compile:
            self.bare.compile()
        optimizer = role.optimizer.build(self.bare, role.lr)
        with warnings.catch_warnings():  # torch renames broadcast_buffers, Accelerate does not know the new name yet
            warnings.filterwarnings("ignore", message=".*broadcast_buffers")
            self.wrapped, self.prepared = accelerator.prepare(self.bare, optimizer)
        self.emas: list[Average] = [Ema(self.bare, decay, role.ema_warmup) for decay in role.ema]
        self.emas += [PowerEma(self.bare, std) for std in role.ema_power]
        self.kept = list(self.emas)
        if role.average_decay is not None:
            self.kept.insert(0, Target(self.bare, role.average_decay))
        self.parameters = [p for p in self.bare.parameters() if p.requires_grad]
        self.average = self._average() if role.average else None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, below Accelerate's wrapper."""
        return self.prepared.optimizer

    def _average(self) -> nn.Module:
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise ConfigError(f"{self.name}: its loss needs its average whole; use DDP in place of FSDP")
        return view(self.bare, self.kept[0].state if self.kept else {})

    def set_rate(self, factor: float, progress: float) -> None:
        """Set the learning rate to `factor` times its peak, and the weight decay to that at `progress` of training."""
        assert self.role.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.role.lr * factor
            if group["decays"]:
                group["weight_decay"] = self.role.optimizer.decay_at(progress)

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradients, as it was before they are clipped here."""
        limit = self.role.clip_norm if self.role.clip_norm is not None else float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        if self.role.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.role.clip_value)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def update(self) -> None:
        """One optimizer step, and the averages after it. Gradients are dropped."""
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        for ema in self.kept:
            ema.update()

    def tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """(file stem, named tensors) of all that a checkpoint holds of this role. Collective when sharded."""
        yield self.name, {name: weights.full(value) for name, value in self.bare.state_dict().items()}
        for ema in self.kept:
            yield f"{self.name}.{ema.name}", {name: weights.full(value) for name, value in ema.state.items()}
        yield (
            f"{self.name}.optimizer",
            {
                f"{name}/{key}": weights.full(torch.as_tensor(value))
                for name, parameter in self.bare.named_parameters()
                for key, value in self.optimizer.state.get(parameter, {}).items()
            },
        )

    def counters(self) -> dict[str, int]:
        """The JSON part: how many updates the averages have seen."""
        return {f"{self.name}.{ema.name}": ema.updates for ema in self.kept}

    def snapshots(self) -> list[Snapshot]:
        """The power-function averages as they are now. Collective when sharded."""
        found: list[Snapshot] = []
        for ema in self.emas:
            if isinstance(ema, PowerEma):
                state = {name: weights.full(value) for name, value in ema.state.items()}
                found.append(Snapshot(self.name, ema.std, ema.updates, state, ema.averaged))
        return found

    def load(self, folder: Path, counters: dict[str, int]) -> None:
        """Restore from a checkpoint folder. Raises CheckpointError if it does not fit."""
        file = folder / f"{self.name}.safetensors"
        weights.fill_all(self.bare.state_dict(), weights.read_tensors(file), str(file))
        for ema in self.kept:
            stem = f"{self.name}.{ema.name}"
            file = folder / f"{stem}.safetensors"
            weights.fill_all(ema.state, weights.read_tensors(file), str(file))
            ema.updates = counters[stem]
        self._load_optimizer(weights.read_tensors(folder / f"{self.name}.optimizer.safetensors"), folder)

    def _load_optimizer(self, saved: dict[str, Tensor], folder: Path) -> None:
        parameters = dict(self.bare.named_parameters())
        for path, value in saved.items():
            name, key = path.rsplit("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:
                state = torch.zeros_like(parameter, dtype=value.dtype)
                weights.fill(state, value, f"{folder}: {path}")
            else:
                state = value if key == "step" else value.to(parameter.device)
            self.optimizer.state[parameter][key] = self._step(state, parameter) if key == "step" else state

    def _step(self, value: Tensor, parameter: Tensor) -> Tensor:
        """AdamW's step counter lives on the device when the update is fused, on the CPU otherwise."""
        return value.to(parameter.device) if self.optimizer.defaults.get("fused") else value
