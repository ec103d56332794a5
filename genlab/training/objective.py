"""What the loop trains: networks in roles, updated in turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from genlab.core.contracts import Batch
from genlab.training.optimizers import OptimizerSettings
from samplers.noise import SampleRng

Networks: TypeAlias = Mapping[str, Callable[..., Any]]
"""Role -> network to call. The role whose turn it is comes wrapped (DDP, FSDP); all others are bare and frozen.

"ROLE.average" is there too for each role with `average`: the same network under a moving average.
"""

Loss: TypeAlias = Callable[[Networks, Batch, SampleRng], dict[str, Tensor]]
"""Named losses, each [B]; "loss" is minimised."""


@dataclass(frozen=True)
class Role:
    """One network of an objective and how it is updated."""

    network: nn.Module
    optimizer: OptimizerSettings | None = None
    """None: frozen, never saved."""
    lr: float = 0.0
    """Peak learning rate; the loop's schedule scales it."""
    clip_norm: float | None = None
    """Largest gradient norm; None does not clip."""
    clip_value: float | None = None
    """Largest entry of a gradient; None does not clip."""
    ema: tuple[float, ...] = ()
    """Decays of the averages to keep."""
    ema_warmup: bool = False
    ema_power: tuple[float, ...] = ()
    """Relative widths of the power-function averages to keep beside them."""
    average: bool = False
    """Whether losses also call the network under an average: the first (or its present weights, if it keeps none)."""
    average_decay: Callable[[int], float] | None = None
    """Of an average that is kept for these calls alone: its decay in update 0, 1, ..."""


@dataclass(frozen=True)
class Turn:
    """Within one step: which role is updated, by which loss."""

    role: str
    loss: Loss


class Objective(ABC):
    """What the loop trains. One network is the trivial case: one role, one turn a step."""

    @abstractmethod
    def roles(self) -> dict[str, Role]:
        """All networks, trainable or frozen. Called once."""

    @abstractmethod
    def turns(self, step: int) -> Sequence[Turn]:
        """The updates of step `step` (0, 1, ...), in order."""

    @abstractmethod
    def preview(self, share: tuple[int, int]) -> Tensor | None:
        """Pictures of the present weights from fixed seeds, uint8 [n,3,R,R]: part `share[0]` of `share[1]` equal parts.

        None if there is nothing to show. Called on all processes at once, with averaged weights in place.
        """

    def figures(self) -> dict[str, float]:
        """Further values for the log (codebook usage, ...), gathered since the last call. Called on all processes."""
        return {}
