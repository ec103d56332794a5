"""Recomputes the golden files of shortcut models and of the baselines that share their code's protocol.

The baselines are recomputed here as that code has them; genlab trains their like by `flow` and by distillation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.convert import shortcut as convert
from genlab.convert import sit
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.contracts import Network
from genlab.networks.interval_dit import IntervalDiT
from genlab.processes.mean_flow import as_rows
from genlab.processes.mean_flow_sampling import walk
from genlab.processes.shortcut import Shortcut, state

FORWARD, LOSS = 1e-5, 1e-4
_REFLOW_STEPS = 8


class TinyFlowNet(Network):
    """The stand-in network: three convolutions, told of time, level and class."""

    def __init__(self, channels: int, hidden: int, classes: int):
        super().__init__()
        self.num_classes = classes
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, channels, 3, padding=1)
        self.time, self.step = nn.Linear(16, hidden), nn.Linear(16, hidden)
        self.label = nn.Embedding(classes + 1, hidden)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, level: Tensor) -> Tensor:
        told = self.time(_features(t)) + self.step(_features(level)) + self.label(label)  # [B,hidden]
        h = F.silu(self.conv_in(x) + told[:, :, None, None])
        return self.conv_out(F.silu(self.mid(h)))


class Rows(NamedTuple):
    """What a case trains on, [B, ...] each."""

    x_t: Tensor
    t: Tensor
    level: Tensor
    label: Tensor
    target: Tensor

    def followed_by(self, others: Rows) -> Rows:
        """These rows, then others until there are as many as those."""
        kept = len(others.t) - len(self.t)
        return Rows(*(torch.cat([mine, theirs[:kept]]) for mine, theirs in zip(self, others)))


@torch.no_grad()
def shortcut_dit(golden: Golden) -> Iterator[Check]:
    """The network at given step sizes, and at the largest."""
    model = {**golden.config, "in_channels": golden["in.x"].shape[1], "learn_sigma": False}
    arguments = sit.from_constructor(model) | {"null_row": True}
    network = convert.load(IntervalDiT(**arguments), golden.group("param"))
    x, t, label, level = (golden[f"in.{name}"] for name in ("x", "t", "y", "dt_base"))
    yield Check("out.v", network(x, t, label, level), FORWARD)
    yield Check("out.v_dt0", network(x, t, label, torch.zeros_like(level)), FORWARD)


@torch.no_grad()
def shortcut_family(golden: Golden) -> Iterator[Check]:
    """What each case trains on, its loss under the present network, and samples."""
    sizes = [golden.config[name] for name in ("channels", "hidden", "classes")]
    networks = {name: _network(golden, name, sizes) for name in ("net", "ema", "teacher")}
    for name, config in golden.config["cases"].items():
        case = Family(golden, name, config, networks)
        rows = case.rows()
        out = case.told(networks["net"])(rows.x_t, rows.t, rows.label, rows.level)
        values = {"x_t": rows.x_t, "t": rows.t, "dt_base": rows.level, "labels": rows.label, "target": rows.target}
        for key, value in values.items():
            yield Check(f"out.{name}.{key}", value, FORWARD)
        yield Check(f"out.{name}.mse", (out - rows.target).square().flatten(1).mean(1), LOSS)
    z, label = golden["in.sample_z"], golden["in.sample_labels"]
    for name in golden.group("out"):
        if name.startswith("sample_"):
            steps = int(name.removeprefix("sample_"))
            field = _field(networks["net"], label, math.log2(steps))
            yield Check(f"out.{name}", walk(field, z, 0.0, 1.0, steps), LOSS)


class Family:
    """One case of the family: how it makes its rows from the file's draws."""

    def __init__(self, golden: Golden, name: str, case: dict[str, Any], networks: dict[str, TinyFlowNet]):
        self.golden, self.name, self.case, self.networks = golden, name, case, networks
        self.model: dict[str, Any] = case["model"]
        self.finest = self.model["denoise_timesteps"]
        self.levels = self.finest.bit_length() - 1
        self.images, self.labels = golden["in.images"], golden["in.labels"]
        self.scale = self.model["cfg_scale"]

    def rows(self) -> Rows:
        """What the case trains on."""
        kinds: dict[str, Callable[[], Rows]] = {
            "naive": lambda: self.flow(0, 0),
            "shortcut": self.shortcut,
            "progressive": self.progressive,
            "cd": self.consistency_distillation,
            "ct": self.consistency_training,
            "livereflow": self.live_reflow,
        }
        return kinds[self.case["kind"]]()

    def told(self, network: TinyFlowNet) -> Callable[..., Tensor]:
        """The network, told level 0 whatever the level where the case ignores it."""
        if not self.case["ignore_dt"]:
            return network
        return lambda x, t, label, level: network(x, t, label, torch.zeros_like(level))

    def draw(self, kind: str, index: int) -> Tensor:
        return self.golden[f"in.{self.name}.{kind}{index}"]

    def flow(self, integers: int, normal: int) -> Rows:
        """Flow matching at the finest level, with label dropout; the arguments say which draws are its own."""
        t = self.draw("randint", integers) / self.finest
        label = torch.where(self.draw("bernoulli", 0), self.model["num_classes"], self.labels)
        x_t, v = state(self.images, self.draw("normal", normal), t)
        return Rows(x_t, t, torch.full_like(t, self.levels), label, v)

    def shortcut(self) -> Rows:
        """The first rows learn from two half steps, the rest from data."""
        count = len(self.labels) // self.model["bootstrap_every"]
        level = self.coarse_levels(count)
        t, x, label = self.draw("randint", 0) / 2**level, self.images[:count], self.labels[:count]
        x_t, _ = state(x, self.draw("normal", 0)[:count], t)
        process = Shortcut(self.finest, guidance=self.scale if self.model["bootstrap_cfg"] else 1.0)
        average = self.networks["ema" if self.model["bootstrap_ema"] else "net"]
        target = process.two_halves(average, x_t, t, level, label)
        return Rows(x_t, t, level, label, target).followed_by(self.flow(1, 1))

    def coarse_levels(self, count: int) -> Tensor:
        """Equal shares of all levels below the finest, or with a bias half of them at 1 and 0; the rest is 0."""
        bias = 2 if self.model["bootstrap_dt_bias"] else 0
        falling = torch.arange(self.levels - 1, bias - 1, -1)
        shares = falling.repeat_interleave(count // (2 if bias else 1) // self.levels)
        ones = torch.ones(count // 4 if bias else 0)
        return torch.cat([shares, ones, torch.zeros(count - len(shares) - len(ones))])  # [count]

    def progressive(self) -> Rows:
        """Progressive distillation: two steps of the teacher, guided only while they are the finest."""
        level = torch.full_like(self.labels, self.levels - 1 - self.stage(), dtype=torch.float32)
        t = self.draw("randint", 0) / 2**level
        x_t, _ = state(self.images, self.draw("normal", 0), t)
        process = Shortcut(self.finest, guidance=self.scale if self.model["bootstrap_cfg"] else 1.0, clip=math.inf)
        teacher = _Told(self.told(self.networks["teacher"]), self.model["num_classes"])
        return Rows(x_t, t, level, self.labels, process.two_halves(teacher, x_t, t, level, self.labels))

    def consistency_distillation(self) -> Rows:
        """Where the average goes from the end of the teacher's finest step."""
        t = self.draw("randint", 0) / self.finest
        level = torch.full_like(t, self.levels)
        x_t, _ = state(self.images, self.draw("normal", 0), t)
        v = self.told(self.networks["teacher"])(x_t, t, self.labels, level)
        later = (x_t + v / self.finest).clamp(-4, 4)
        return Rows(x_t, t, level, self.labels, self.consistent(x_t, t, later, t + 1 / self.finest))

    def consistency_training(self) -> Rows:
        """Where the average goes from a later state of the same data and noise; the step shrinks in training."""
        level = torch.full_like(self.labels, self.stage(), dtype=torch.float32)
        t = self.draw("randint", 0) / 2**level
        noise = self.draw("normal", 0)
        x_t, _ = state(self.images, noise, t)
        later, _ = state(self.images, noise, t + 2**-level)
        return Rows(x_t, t, level, self.labels, self.consistent(x_t, t, later, t + 2**-level))

    def consistent(self, x_t: Tensor, t: Tensor, later: Tensor, after: Tensor) -> Tensor:
        """The velocity from x_t at t to the data that the average sees from the state `later` at time `after`."""
        v = self.told(self.networks["ema"])(later, after, self.labels, torch.zeros_like(t))
        data = later + as_rows(1 - after, later) * v
        return (data - x_t) / as_rows(1 - t, x_t)

    def live_reflow(self) -> Rows:
        """The first rows learn the straight way to what the present network makes of their noise in guided steps."""
        flow = self.flow(0, 1)
        count = len(self.draw("randint", 1))
        t, noise, label = self.draw("randint", 1) / self.finest, self.draw("normal", 0)[:count], self.labels[:count]
        network = _Told(self.networks["net"], self.model["num_classes"])
        process, level = Shortcut(self.finest, guidance=self.scale), torch.full_like(t, self.levels)

        def field(x: Tensor, time: float) -> Tensor:
            return process.velocity(network, x, torch.full_like(t, time), level, label)

        data = walk(field, noise, 0.0, 1.0, _REFLOW_STEPS)
        x_t, _ = state(data, noise, t)
        return Rows(x_t, t, torch.zeros_like(t), label, data - noise).followed_by(flow)

    def stage(self) -> int:
        """How often the number of steps has changed: as often in training as there are levels."""
        return self.case["step"] // (self.case["max_steps"] // self.levels)


class _Told:
    """A callable with the null label of a network."""

    def __init__(self, network: Callable[..., Tensor], classes: int):
        self.network, self.null_label = network, classes

    def __call__(self, *given: Tensor) -> Tensor:
        return self.network(*given)


def _field(network: Callable[..., Tensor], label: Tensor, level: float) -> Callable[[Tensor, float], Tensor]:
    """The velocity of steps of one level."""
    levels = torch.full((len(label),), float(level))
    return lambda x, t: network(x, torch.full_like(levels, t), label, levels)


def _network(golden: Golden, name: str, sizes: list[int]) -> TinyFlowNet:
    network = TinyFlowNet(*sizes)
    network.load_state_dict(golden.group(f"param.{name}"))
    return network


def _features(value: Tensor) -> Tensor:
    """[B] -> [B,16]."""
    angle = value[:, None] * 10_000.0 ** (-torch.arange(8) / 8)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


CASES: dict[str, Case] = {"shortcut_dit": shortcut_dit, "shortcut_family": shortcut_family}
