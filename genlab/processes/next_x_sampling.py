"""How next-X prediction samples: entity after entity, each integrated from noise against a cache of those before it.

Letters: B batch, R rows (B conditional ones, then B unconditional ones), C channels, G entities, n tokens of an entity,
L tokens in all, F features of a token, H W grid, U distinct labels, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from genlab.core.contracts import Event, OnStep
from genlab.processes.flow_sampling import FlowSampling, deterministic, stochastic
from genlab.processes.guidance import combine
from samplers.noise import SampleRng

TICKS = 1000
"""The network's times are whole numbers up to this, which is noise."""
_REMEMBERED = 256 * 2**20
"""Bytes of modulations that are kept for the entities to come."""
Streams: TypeAlias = Callable[[int], SampleRng]
"""Entity -> the streams of its random numbers."""


class Entities(Protocol):
    """A network's entities; see genlab.networks.xar_entities.Entities."""

    sizes: tuple[int, ...]
    owner: Tensor
    patch: int

    def __len__(self) -> int: ...
    def span(self, entity: int) -> slice: ...
    def arrange(self, image: Tensor) -> Tensor: ...
    def restore(self, tokens: Tensor) -> Tensor: ...
    def show(self, tokens: Tensor) -> Tensor: ...
    def choose(self, mask: Tensor, channels: int) -> Tensor: ...


class EntityNetwork(Protocol):
    """What sampling needs of a network; see genlab.networks.xar.XAR."""

    num_classes: int

    @property
    def entities(self) -> Entities: ...
    @property
    def null_label(self) -> int: ...
    def new_cache(self, rows: int) -> Any: ...
    def modulations(self, t: Tensor, label: Tensor) -> Tensor: ...
    def step(self, x: Tensor, entity: int, m: Tensor, cache: Any) -> Tensor: ...
    def remember(self, x: Tensor, entity: int, m: Tensor, cache: Any) -> None: ...


class NextXSampling(FlowSampling):
    """Settings of next-X prediction's samplers."""

    sampler: Literal["euler", "heun", "midpoint", "rk4", "euler_maruyama", "sde_heun"] = "euler_maruyama"
    """For the ODE: euler, heun, midpoint, rk4 (1, 2, 2 and 4 network calls a step). For the SDE: euler_maruyama, as
    published, sde_heun (1 and 2)."""
    steps: PositiveInt = 40
    """Steps for each entity, not grid points; of the SDE this includes the last step."""
    guidance_ramp: Literal["linear", "constant"] = "linear"
    """linear: from 1 at the first entity, which costs half, to `guidance` at the last, as published."""
    context_noise: float = Field(0.0, ge=0, lt=1)
    """Share of noise that finished entities get back before others see them; training never shows clean ones."""

    def idle(self) -> set[str]:
        return super().idle() | ({"guidance_ramp"} if self.guidance == 1 else set())

    def scale(self, entity: int, count: int) -> float:
        """Guidance of one of `count` entities."""
        if self.guidance_ramp == "constant" or count == 1:
            return self.guidance
        return (self.guidance - 1) * entity / (count - 1) + 1


def ticks(t: Tensor) -> Tensor:
    """Shares of noise, of any dtype -> the whole numbers 0..1000 that networks are told, rounded down in float32."""
    return (TICKS * t.float()).trunc()


@dataclass(frozen=True)
class Edit:
    """What is kept of given images."""

    known: Tensor
    """[B,L,F], in the order of the entities."""
    chosen: Tensor
    """bool [B|1,L,F|1]: what is made anew."""

    def entities(self, sequence: Entities) -> list[int]:
        """Those in which anything is made anew."""
        used = [self.chosen[:, sequence.span(entity)].any() for entity in range(len(sequence))]
        return torch.stack(used).nonzero().flatten().tolist()


class Conditions:
    """The modulations of labels at times, computed once for each pair as far as memory allows.

    Args:
        label: [B]; with `guided`, as many rows of the null label follow them.
    """

    def __init__(self, network: EntityNetwork, label: Tensor, guided: bool):
        rows = torch.cat([label, torch.full_like(label, network.null_label)]) if guided else label  # [R]
        self._network = network
        self._labels, self._row = rows.unique(return_inverse=True)  # [U], [R]
        self._kept: dict[float, Tensor] = {}
        self._free = _REMEMBERED

    def at(self, t: float, rows: int) -> Tensor:
        """[blocks,rows,6D] of the first rows, at a share of noise."""
        tick = ticks(torch.tensor(t, dtype=torch.float64, device="cpu")).item()
        table = self._kept.get(tick)
        if table is None:
            times = torch.full(self._labels.shape, tick, dtype=torch.float32, device=self._labels.device)  # [U]
            table = self._network.modulations(times, self._labels)  # [blocks,U,6D]
            self._free -= table.numel() * table.element_size()
            if self._free >= 0:
                self._kept[tick] = table
        return table[:, self._row[:rows]]


class Generation:
    """One batch while its entities form.

    Args:
        label: [B].
        edit: what to keep of given images; None: nothing, there are none.
    """

    def __init__(
        self, network: EntityNetwork, label: Tensor, channels: int, settings: NextXSampling, edit: Edit | None = None
    ):
        self.network, self.settings, self.edit = network, settings, edit
        self.sequence = network.entities
        self.batch, self.features = len(label), channels * self.sequence.patch**2
        self.guided = settings.guidance != 1 and network.num_classes > 0
        self.rows = self.batch * (2 if self.guided else 1)
        self.conditions = Conditions(network, label, self.guided)
        self.cache = network.new_cache(self.rows)

    def run(self, streams: Streams, on_step: OnStep | None = None) -> Tensor:
        """Tokens [B,C,H,W]; `on_step` sees the entities that are done, and the guess of the present one."""
        todo = range(len(self.sequence)) if self.edit is None else self.edit.entities(self.sequence)
        done: list[Tensor] = []
        for entity in range(len(self.sequence)):
            stream = streams(entity)
            if entity in todo:
                position = todo.index(entity)
                done.append(self._make(entity, stream, self._watch(on_step, done, position, len(todo))))
            else:
                done.append(self._known(entity))
            if any(later > entity for later in todo):
                self._remember(entity, done[-1], stream)
        return self.sequence.restore(torch.cat(done, dim=1))

    def velocity(self, entity: int) -> Callable[[Tensor, float], Tensor]:
        """(x [B,n,F], t) -> the guided velocity [B,n,F] towards the data, which is at t = 1."""
        guidance, scale = self.settings.as_guidance(), self.settings.scale(entity, len(self.sequence))
        channels = None if guidance.channels is None else guidance.channels * self.sequence.patch**2

        def predict(x: Tensor, t: float) -> Tensor:
            low, high = guidance.interval
            if not self.guided or scale == 1 or not low <= t <= high:
                return -self.network.step(x, entity, self.conditions.at(1 - t, self.batch), self.cache)
            m = self.conditions.at(1 - t, self.rows)  # [blocks,R,6D]
            conditional, unconditional = self.network.step(torch.cat([x, x]), entity, m, self.cache).mT.chunk(2)
            return -combine(conditional, unconditional, scale, channels).mT

        return predict

    def _make(self, entity: int, stream: SampleRng, on_step: OnStep | None) -> Tensor:
        """One entity [B,n,F] from noise. Where it is known it follows the straight path from its noise."""
        noise = stream.normal(self.sequence.sizes[entity], self.features)  # [B,n,F]
        velocity = self.velocity(entity)

        def kept(x: Tensor, t: float) -> Tensor:
            return velocity(self._with_known(entity, x, noise, t), t)

        run = stochastic if self.settings.is_stochastic else deterministic
        x = run("linear", kept, noise, (0.0, 1.0), self.settings, stream, on_step)
        return self._with_known(entity, x, noise, 1.0)

    def _with_known(self, entity: int, x: Tensor, noise: Tensor, t: float) -> Tensor:
        """x [B,n,F] with what is kept of given images in its place, as noisy as it is at t."""
        if self.edit is None:
            return x
        chosen = self.edit.chosen[:, self.sequence.span(entity)]  # [B|1,n,F|1]
        known = self._known(entity)
        return torch.where(chosen, x, known if t == 1 else torch.lerp(noise, known, t))

    def _known(self, entity: int) -> Tensor:
        assert self.edit is not None
        return self.edit.known[:, self.sequence.span(entity)]

    def _remember(self, entity: int, x: Tensor, stream: SampleRng) -> None:
        t = self.settings.context_noise
        if t:
            x = torch.lerp(x, stream.normal(*x.shape[1:]), t)
        rows = torch.cat([x, x]) if self.guided else x  # [R,n,F]
        self.network.remember(rows, entity, self.conditions.at(t, self.rows), self.cache)

    def _watch(self, on_step: OnStep | None, done: list[Tensor], position: int, count: int) -> OnStep | None:
        """`on_step` for the steps of one entity, as the `position`-th of `count`."""
        if on_step is None:
            return None
        before = list(done)

        def watch(event: Event) -> None:
            now = self._with_known(len(before), event.tokens, event.tokens, 1.0)  # [B,n,F]
            if self.edit is None:
                image = self.sequence.show(torch.cat([*before, now], dim=1))
            else:
                rest = self.edit.known[:, self.sequence.span(len(before)).stop :]
                image = self.sequence.restore(torch.cat([*before, now, rest], dim=1))
            on_step(Event(position * event.steps + event.step, count * event.steps, image))

        return watch
