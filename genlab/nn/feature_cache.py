"""Reusing features of a transformer between the steps of a sampler, from outside, for as long as a context lasts.

Each call of the network is one step, so solvers with several calls a step need a schedule that knows it. A call with
another batch size than the last full one (guidance that switches on) is computed in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genlab.nn.cache_policies import Forecast, Gate, Schedule


@dataclass
class Usage:
    """What was computed."""

    full: list[bool] = field(default_factory=list)
    """For each call of the network so far."""


@contextmanager
def cache_branches(network: nn.Module, schedule: Schedule, order: int = 0) -> Iterator[Usage]:
    """Within the block, attention and perceptrons are computed in the full steps of `schedule` only.

    In the others their outputs, before the gates of the present step, are those of the last full step (FORA), or
    forecast from its differences up to `order` (TaylorSeer).
    """
    usage = Usage()
    blocks = [
        module
        for module in network.modules()
        if isinstance(getattr(module, "attn", None), nn.Module) and isinstance(getattr(module, "mlp", None), nn.Module)
    ]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no transformer blocks to cache; leave the cache out")

    def count(_module: nn.Module, _args: Any) -> None:
        usage.full.append(schedule.is_full(len(usage.full)))

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(count).remove)
        for block in blocks:
            for name in ("attn", "mlp"):
                branch = block.get_submodule(name)
                setattr(block, name, _Branch(branch, usage, Forecast(order)))
                stack.callback(setattr, block, name, branch)
        yield usage


@contextmanager
def cache_stack(blocks: nn.ModuleList, gate: Gate) -> Iterator[Usage]:
    """Within the block, the first of `blocks` always runs, and the others if `gate` says so, told what the first added.

    Otherwise the output is that of the first, and what the others added in the last full step (first-block cache). The
    tokens must be the first argument of every block and its only result.
    """
    if len(blocks) < 2:
        raise ValueError(f"a cache of the stack needs at least two blocks: got {len(blocks)}; leave it out")
    plain, shared = list(blocks), _Stack(gate)
    try:
        blocks[0] = _First(plain[0], shared)
        for index in range(1, len(plain)):
            blocks[index] = _Later(plain[index], shared, last=index == len(plain) - 1)
        yield shared.usage
    finally:
        for index, block in enumerate(plain):
            blocks[index] = block


class _Branch(nn.Module):
    def __init__(self, branch: nn.Module, usage: Usage, forecast: Forecast):
        super().__init__()
        self.branch, self.usage, self.forecast = branch, usage, forecast

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        step = len(self.usage.full) - 1
        if not self.usage.full[step]:
            if self.forecast.fits(x.shape):
                return self.forecast.at(step)
            self.usage.full[step] = True
        out = self.branch(x, *args, **options)
        self.forecast.update(step, out)
        return out


@dataclass
class _Stack:
    """What the blocks of a stack share."""

    gate: Gate
    usage: Usage = field(default_factory=Usage)
    head: Tensor = field(default_factory=lambda: torch.empty(0))
    """The output of the first block."""
    rest: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the others added to it in the last full step."""


class _First(nn.Module):
    def __init__(self, block: nn.Module, shared: _Stack):
        super().__init__()
        self.block, self.shared = block, shared

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        shared = self.shared
        shared.head = out = self.block(x, *args, **options)
        shared.usage.full.append(shared.gate.is_full(out - x))
        return out


class _Later(nn.Module):
    def __init__(self, block: nn.Module, shared: _Stack, last: bool):
        super().__init__()
        self.block, self.shared, self.last = block, shared, last

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        shared = self.shared
        if shared.usage.full[-1]:
            x = self.block(x, *args, **options)
            if self.last:
                shared.rest = x - shared.head
        elif self.last:
            x = x + shared.rest
        return x
