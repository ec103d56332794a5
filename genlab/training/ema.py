"""Moving averages of a network's weights: exponential ones, and ones that widen as training goes on."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genlab.training import power_ema


class Average(ABC):
    """average <- keep * average + (1 - keep) * weights, after every update; buffers are copied.

    The average starts as a copy of the weights. Parameters without gradients, which stay as they are, are left out of
    `state`.
    """

    def __init__(self, network: nn.Module):
        self.updates = 0
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self._live = {name: value for name, value in network.state_dict(keep_vars=True).items() if name not in frozen}
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._live.items()}
        self.averaged = {
            name for name, v in self._live.items() if isinstance(v, nn.Parameter) and v.is_floating_point()
        }
        """The names in `state` that are averaged; all others are copied."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What its files are called by."""

    @abstractmethod
    def keep(self, update: int) -> float:
        """The share that is kept of the average in update 1, 2, ..."""

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, value in self._live.items():
            (averaged if name in self.averaged else copied).append((self.state[name], value.detach()))
        if averaged:
            torch._foreach_lerp_([a for a, _ in averaged], [w for _, w in averaged], 1 - self.keep(self.updates))
        for average, value in copied:
            average.copy_(value)

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Within the block, the network holds the averaged weights (exactly restored afterwards)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self._live.items():
            kept = value.detach().clone()
            value.detach().copy_(self.state[name])
            self.state[name].copy_(kept)


class Ema(Average):
    """Exponential: keeps `decay`; with `warmup` min(decay, (1 + n) / (10 + n)) in update n.

    Warm-up keeps short runs from being dominated by the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = False):
        super().__init__(network)
        self.decay, self.warmup = decay, warmup

    @property
    def name(self) -> str:
        return f"ema-{self.decay:g}"

    def keep(self, update: int) -> float:
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class Target(Average):
    """Exponential with a decay of its own in every update, for losses to call; see `Role.average_decay`."""

    def __init__(self, network: nn.Module, decay: Callable[[int], float]):
        super().__init__(network)
        self.decay = decay

    @property
    def name(self) -> str:
        return "target"

    def keep(self, update: int) -> float:
        return self.decay(update - 1)


class PowerEma(Average):
    """Of a power function, whose width is always the share `std` of the updates so far; see `power_ema`."""

    def __init__(self, network: nn.Module, std: float):
        super().__init__(network)
        self.std = std

    @property
    def name(self) -> str:
        return f"power-{self.std:g}"

    def keep(self, update: int) -> float:
        return power_ema.decay(self.std, update, 1)


def view(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A second `network` on the tensors of `state`, on its own where there are none: evaluation mode, no gradients.

    No weight is copied.
    """
    shared: dict[int, object] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        tensor = state.get(name, value.detach())
        shared[id(value)] = nn.Parameter(tensor, requires_grad=False) if isinstance(value, nn.Parameter) else tensor
    second = copy.deepcopy(network, shared)
    for patched in ("forward", "_original_forward"):  # Accelerate's autocast wrapper belongs to the first
        second.__dict__.pop(patched, None)
    return second.eval()
