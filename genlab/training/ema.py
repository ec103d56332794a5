"""Exponential moving averages of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """average <- decay * average + (1 - decay) * weights, after every update; buffers are copied.

    The average starts as a copy of the weights. With `warmup`, the decay of update n is min(decay, (1 + n) / (10 + n)),
    so that short runs are not dominated by the initial weights. Parameters without gradients, which stay as they are,
    are left out of `state`.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = False):
        self.decay, self.warmup, self.updates = decay, warmup, 0
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self._live = {name: value for name, value in network.state_dict(keep_vars=True).items() if name not in frozen}
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, value in self._live.items():
            moves = isinstance(value, nn.Parameter) and value.is_floating_point()
            (averaged if moves else copied).append((self.state[name], value.detach()))
        if averaged:
            torch._foreach_lerp_([a for a, _ in averaged], [w for _, w in averaged], 1 - decay)
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
