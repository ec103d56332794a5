"""Autoregressive flow matching: each state of a sample is predicted in the light of the earlier, noisier ones.

"ARFlow: Autoregressive Flow with Hybrid Linear Attention", Hui et al. 2025 (arXiv 2501.16085). Trained on sequences of
different images of one class, noised to times that go up; sampled along the sequence of an image's own states.

Letters: B batch, S images in a sequence, C latent channels, H W latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from genlab.core.contracts import EditKind, Network
from genlab.core.errors import ConfigError, GenlabError
from genlab.processes.flow import Flow, FlowConfig
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.paths import Time
from samplers.noise import SampleRng


class RecurrentNetwork(Protocol):
    """What this process needs beside `forward(x[B,S,C,H,W], t[B,S], label[B,S]) -> [B,S,C',H,W]`, which lets an image
    know of those of its label before it in its sequence."""

    num_classes: int

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""

    def step(self, x: Tensor, t: Tensor, label: Tensor, states: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The next images x [B,C,H,W] of sequences -> [B,C',H,W], and the states [B,...] after them."""


class AutoregressiveFlowSampling(FlowSampling):
    """Settings of an autoregressive flow's samplers."""

    sampler: Literal["euler", "euler_maruyama"] = "euler_maruyama"
    """euler_maruyama for the SDE, as published, or euler for the ODE; each call is one image of the sequence."""
    steps: PositiveInt = 250
    """Steps, not grid points; of the SDE this includes the last step."""
    forget_every: PositiveInt | None = None
    """Empty the memory after so many network calls; training knows process.sequence images. By default never."""


@dataclass(frozen=True)
class AutoregressiveFlow(Flow):
    """A Flow over sequences; see AutoregressiveFlowConfig for each field."""

    edits: ClassVar[frozenset[EditKind]] = frozenset()

    sequence: int = 5

    def losses_at(
        self, network: Callable[..., Tensor], x1: Tensor, x0: Tensor, t: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """As a Flow's, each [B] in the order of x1, with the batch arranged as sequences of one label and rising times.

        Images of the same label are brought together, in their order, and cut into runs of S, whose times are sorted.
        So a batch that comes as sequences is taken as it is, and in any other each image finds companions as far as the
        batch has them; where two labels share a run, neither knows of the other.

        Raises:
            ConfigError: S does not divide B.
        """
        if len(x1) % self.sequence:
            raise ConfigError(
                f"process.sequence must divide the batch of each process: got sequences of {self.sequence} for "
                f"{len(x1)} images; change training.batch or training.micro_batch"
            )
        order = label.argsort(stable=True)  # [B]
        rising = t[order].view(-1, self.sequence).sort(1).values.flatten()  # [B]

        def flat(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            x, t, label = (value.unflatten(0, (-1, self.sequence)) for value in (x, t, label))  # 3 x [B/S,S,...]
            return network(x, t, label).flatten(0, 1)  # [B,C',H,W]

        losses = super().losses_at(flat, x1[order], x0[order], rising, label[order])
        return {name: torch.empty_like(value).index_copy(0, order, value) for name, value in losses.items()}

    def denoiser(
        self, network: Network, label: Tensor, settings: FlowSampling, weaker: Network | None = None
    ) -> Callable[[Tensor, Time], Tensor]:
        """(x [B,C,H,W], t) -> the guided velocity; each call is the next of the B sequences, so times must rise.

        The memory begins empty and belongs to the callable.

        Raises:
            ConfigError: the network has no memory.
        """
        forget_every = settings.forget_every if isinstance(settings, AutoregressiveFlowSampling) else None
        memory: Any = Remembering(network, forget_every)
        other: Any = None if weaker is None else Remembering(weaker, forget_every)
        return super().denoiser(memory, label, settings, other)

    def log_likelihood(
        self, network: Network, tokens: Tensor, label: Tensor, rng: SampleRng, steps: int = 50, method: str = "heun"
    ) -> Tensor:
        """Raises GenlabError: what depends on its whole path has no flow to follow back."""
        raise GenlabError(
            "an autoregressive flow has no likelihood: its velocity depends on the path, not on the state"
        )


class Remembering:
    """A network whose calls are the steps of a sequence; the first rows of every call are the same sequences.

    Calls may have fewer rows than others (guidance may be off for a while): what a row did not see, it cannot know.
    """

    def __init__(self, network: Any, forget_every: int | None = None):
        if not hasattr(network, "step"):
            raise ConfigError(
                f"process arflow needs a network with a memory: got {type(network).__name__}; choose network arflow"
            )
        self.network: RecurrentNetwork = network
        self.num_classes = network.num_classes
        self._forget_every = forget_every
        self._calls = 0
        self._states: list[Tensor] | None = None

    @property
    def null_label(self) -> int:
        """The network's own."""
        return self.network.null_label

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x [B,C,H,W], t [B], label [B] -> [B,C',H,W]."""
        if self._forget_every and self._calls % self._forget_every == 0:
            self._states = None
        self._calls += 1
        known = None if self._states is None else [_with_rows(state, len(x)) for state in self._states]
        out, after = self.network.step(x, t, label, known)
        if self._states is not None and len(self._states[0]) > len(x):
            after = [torch.cat([new, old[len(x) :]]) for new, old in zip(after, self._states)]
        self._states = after
        return out


def _with_rows(state: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of a state, and empty ones where it has fewer."""
    if len(state) >= rows:
        return state[:rows]
    return torch.cat([state, state.new_zeros(rows - len(state), *state.shape[1:])])


class AutoregressiveFlowConfig(FlowConfig):
    """Autoregressive flow matching (ARFlow), for a network with a memory."""

    name: Literal["arflow"] = "arflow"  # type: ignore[assignment]  # the tag of another member of the union
    sequence: int = Field(5, ge=1)
    """Images in a training sequence; must divide each process's micro-batch."""

    Sampling: ClassVar[type[FlowSampling]] = AutoregressiveFlowSampling

    def check(self, network: object) -> None:
        """Raises ValueError for a network without a memory of earlier images."""
        if not hasattr(network, "step"):
            raise ValueError(f"process arflow needs network arflow, got {type(network).__name__}; or take process flow")

    def build(self) -> AutoregressiveFlow:
        """The process."""
        return AutoregressiveFlow(**self.model_dump(exclude={"name"}))
