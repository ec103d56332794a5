"""Following samples while they form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.core.contracts import Event, OnStep
from genlab.core.errors import NonFinite


class StepMonitor:
    """Reports steps to `on_step`, and remembers without waiting for the device where each sample broke.

    Args:
        x: the states [B, ...] at the start.
        steps: how many steps there will be.
    """

    def __init__(self, x: Tensor, steps: int, on_step: OnStep | None):
        self._steps, self._on_step = steps, on_step
        self._broken = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # [B] first bad step, 0 while good

    def report(self, step: int, result: Tensor, guess: Callable[[], Tensor]) -> None:
        """Step `step` (1..steps) led to the states `result`; `guess()` tells what they promise to become.

        Raises:
            NonFinite: a sample has broken, and somebody is watching.
        """
        newly = (self._broken == 0) & ~result.isfinite().flatten(1).all(1)
        self._broken = torch.where(newly, step, self._broken)
        if self._on_step is None:
            return
        self.check()
        self._on_step(Event(step, self._steps, result if step == self._steps else guess()))

    def follow(self, step: int, result: Tensor, guess: Tensor) -> None:
        """The same where the guess is at hand."""
        self.report(step, result, lambda: guess)

    def check(self) -> None:
        """Raises NonFinite if a sample has broken."""
        broken = self._broken.tolist()
        if any(broken):
            first = min(step for step in broken if step)
            rows = [row for row, step in enumerate(broken) if step]
            raise NonFinite(
                f"sampling became non-finite at step {first} of {self._steps}, in samples {rows} of the batch; "
                "the network may have diverged, or try more steps or less guidance"
            )
