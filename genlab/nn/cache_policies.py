"""When a sampler may reuse what a network computed in earlier steps, and what it then takes instead.

All of this is approximate; a policy that never reuses leaves results bit-identical. Steps count 0, 1, ... from noise to
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Schedule(Protocol):
    """Tells in advance which steps are computed in full."""

    def is_full(self, step: int) -> bool: ...


class Gate(Protocol):
    """Decides in each step, from something that is computed anyway."""

    def is_full(self, signal: Tensor) -> bool: ...


@dataclass(frozen=True)
class Every:
    """The first step, and those whose distance from the last of `steps` is a multiple of `interval`.

    "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", Selvaraju et al. 2024 (arXiv 2407.01425).
    """

    steps: int
    interval: int

    def is_full(self, step: int) -> bool:
        return step == 0 or (self.steps - 1 - step) % self.interval == 0


@dataclass(frozen=True)
class Between:
    """All steps before `before` (at least 1) and from `after` on; between, each `interval`-th from `before` + 1 on."""

    interval: int
    before: int = 3
    after: int | None = None

    def is_full(self, step: int) -> bool:
        late = self.after is not None and step >= self.after
        return step < self.before or late or (step - self.before - 1) % self.interval == 0


@dataclass
class FirstBlockGate:
    """Full where the signal differs from that of the last full step by more than `threshold` of its mean size."""

    threshold: float = 0.05
    _reference: Tensor | None = field(default=None, init=False)

    def is_full(self, signal: Tensor) -> bool:
        full = self._reference is None or _change(signal, self._reference) > self.threshold
        if full:
            self._reference = signal
        return full


@dataclass
class AccumulatedGate:
    """Full where the changes from step to step since the last full one, through a polynomial, add up to `threshold`.

    TeaCache (CVPR 2025). The first of `steps` and the last are full.

    Args:
        coefficients: of the polynomial, fitted to a network; the highest power first.
    """

    threshold: float
    steps: int
    coefficients: Sequence[float] = (1.0, 0.0)
    accumulated: float = field(default=0.0, init=False)
    _before: Tensor | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)

    def is_full(self, signal: Tensor) -> bool:
        if self._before is not None:
            self.accumulated += self._grown(_change(signal, self._before))
        full = self._step in (0, self.steps - 1) or self.accumulated >= self.threshold
        self.accumulated = 0.0 if full else self.accumulated
        self._before, self._step = signal, self._step + 1
        return full

    def _grown(self, change: float) -> float:
        """The polynomial of a change."""
        if math.isinf(change):  # another batch size
            return math.inf
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value


class Forecast:
    """A feature in the steps to come, from its finite differences between full steps (TaylorSeer, ICCV 2025).

    Args:
        order: of the highest difference; 0 repeats the last feature.
    """

    def __init__(self, order: int = 0):
        self.order = order
        self._terms: list[Tensor] = []
        self._step = 0

    def update(self, step: int, feature: Tensor) -> None:
        """Learn the feature of a full step."""
        terms = [feature]
        for before in self._terms[: self.order]:
            terms.append((terms[-1] - before) / (step - self._step))
        self._terms, self._step = terms, step

    def at(self, step: int) -> Tensor:
        """The feature expected at a later step."""
        distance = step - self._step
        result = self._terms[0]
        for power, term in enumerate(self._terms[1:], start=1):
            result = result + term * (distance**power / math.factorial(power))
        return result

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether features of this shape are known."""
        return bool(self._terms) and self._terms[0].shape == tuple(shape)


def _change(signal: Tensor, reference: Tensor) -> float:
    """The mean absolute difference of two signals, as a share of the second; infinite between different shapes."""
    if signal.shape != reference.shape:
        return math.inf
    return ((signal - reference).abs().mean() / reference.abs().mean()).item()
