"""The noise levels of a continuous process: what distillation asks of flow, diffusion, vp and edm alike.

A level is a time in the process's own unit: t in [0, 1] of a flow (1 is data), a step of a diffusion or vp (0 or 1 is
nearly data), sigma of edm. States are x = alpha data + sigma noise. All conversions are those of
`genlab.processes.predict` and of the processes themselves; the table of parameterisations is held by goldens/dmd2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import Process
from genlab.core.errors import ConfigError
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.flow import Flow
from genlab.processes.guidance import Guidance, guide, rows
from genlab.processes.paths import Coefficients, Time, interpolate
from genlab.processes.paths import coefficients as path_coefficients
from genlab.processes.predict import Prediction, to_data, to_noise, to_score, to_velocity
from genlab.processes.vp import VpDiffusion
from samplers.grids import karras, uniform
from samplers.noise import SampleRng

_EVERYWHERE = (float("-inf"), float("inf"))


class Levels(ABC):
    """The levels of one process. Times t are [B], or one number where `Time` says so."""

    @property
    @abstractmethod
    def kind(self) -> Prediction:
        """What the network's output means."""

    @abstractmethod
    def draw(self, rng: SampleRng, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A level [B] for each sample, uniform on the shares [low, high] of the way from data (0) to noise (1)."""

    @abstractmethod
    def spread(self, count: int, shift: float = 1.0) -> tuple[float, ...]:
        """`count` levels from noise towards data for a sampler that renoises, evenly spaced in the process's own way.

        Args:
            shift: below 1 moves a flow's levels towards the noise, above 1 towards the data.
        """

    @abstractmethod
    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives at t, in shapes that broadcast with x [B, ...]."""

    @abstractmethod
    def loss(self, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The process's own training loss [B] of a denoiser at levels t; `network` gets the network's own inputs."""

    @abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """The levels at which sigma / alpha is `ratio` [B]; of a discrete process the nearest."""

    @property
    @abstractmethod
    def language(self) -> tuple[Any, ...]:
        """What two processes must have in common for a network of the one to serve the other as it is."""

    @abstractmethod
    def problem(self, t: float) -> str | None:
        """What is wrong with t as a level to generate from, if anything."""

    def noisiness(self, t: float) -> float:
        """sigma / alpha at one level; infinite for pure noise."""
        c = self.coefficients(t, torch.empty(1))
        return float(c.sigma / c.alpha)

    def times(self, t: float, x: Tensor) -> Tensor:
        """One level for all samples of x [B, ...], as times [B]."""
        return rows(t, x)

    def pure(self, noise: Tensor, t: Tensor) -> Tensor:
        """The first state of a generator that is told t: standard normal noise, for edm times sigma."""
        return noise

    def noised(self, data: Tensor, noise: Tensor, t: Time) -> Tensor:
        """The state alpha data + sigma noise [B,C,H,W]."""
        return interpolate(self.coefficients(t, data), data, noise)

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given for states x [B,C,H,W] at levels t: its input and its time [B]."""
        return x, t.float()

    def data(self, out: Tensor, x: Tensor, t: Time) -> Tensor:
        """The clean sample [B,C,H,W] that the network's output [B,C',H,W] says is in the states x."""
        return to_data(self.kind, out[:, : x.shape[1]], x, self.coefficients(t, x))

    def noise(self, data: Tensor, x: Tensor, t: Time) -> Tensor:
        """The noise [B,C,H,W] in the states x, if `data` is the clean sample in them; needs sigma > 0."""
        return to_noise("data", data, x, self.coefficients(t, x))

    def output(self, data: Tensor, x: Tensor, t: Time) -> Tensor:
        """The network output [B,C,H,W] that says so: the inverse of `data`; needs sigma > 0."""
        convert = {"data": to_data, "noise": to_noise, "velocity": to_velocity, "score": to_score}[self.kind]
        return convert("data", data, x, self.coefficients(t, x))

    def denoise(self, network: Any, x: Tensor, t: Tensor, label: Tensor, guidance: float = 1.0) -> Tensor:
        """The clean sample [B,C,H,W] that `network` sees in the states x at levels t [B].

        Args:
            guidance: classifier-free, in the network's own output and on all channels of the state; 1 is none.
        """
        predict = guide(network, label, Guidance(guidance, _EVERYWHERE))
        return self.data(predict(*self.inputs(x, t)), x, t)


@dataclass(frozen=True)
class FlowLevels(Levels):
    """t in [0, 1], from noise to data."""

    process: Flow

    @property
    def kind(self) -> Prediction:
        return self.process.prediction

    @property
    def language(self) -> tuple[Any, ...]:
        return "flow", self.process.path, self.process.prediction

    def draw(self, rng: SampleRng, low: float = 0.0, high: float = 1.0) -> Tensor:
        start, end = self.process.train_interval()
        return end + (low + (high - low) * rng.uniform()) * (start - end)

    def spread(self, count: int, shift: float = 1.0) -> tuple[float, ...]:
        start, end = self.process.sample_interval()
        return tuple(uniform(start, end, count, shift)[:-1].tolist())

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        return path_coefficients(self.process.path, t, x)

    def loss(self, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.process.losses_at(network, data, noise, t, label)["loss"]

    def time_of(self, ratio: Tensor) -> Tensor:
        """By bisection, to the precision of float64."""
        low, high = torch.zeros_like(ratio, dtype=torch.float64), torch.ones_like(ratio, dtype=torch.float64)
        for _ in range(52):
            middle = (low + high) / 2
            c = self.coefficients(middle, middle)
            noisier = c.sigma > ratio * c.alpha
            low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
        return high.to(ratio.dtype)

    def problem(self, t: float) -> str | None:
        start, _ = self.process.sample_interval()
        return None if start <= t < 1 else f"a flow's levels are times from {start:g} (noise) to below 1 (data)"


@dataclass(frozen=True)
class StepLevels(Levels):
    """Steps 0..T-1 of a discrete diffusion, int64."""

    process: Diffusion

    @property
    def kind(self) -> Prediction:
        return self.process.prediction

    @property
    def language(self) -> tuple[Any, ...]:
        p = self.process
        return "diffusion", p.steps, p.schedule, p.zero_terminal_snr, p.prediction

    def draw(self, rng: SampleRng, low: float = 0.0, high: float = 1.0) -> Tensor:
        return _whole(rng, self.process.steps, low, high)

    def spread(self, count: int, shift: float = 1.0) -> tuple[float, ...]:
        return _strided(self.process.steps - 1, self.process.steps, count)

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        return self.process.coefficients(t, x)

    def times(self, t: float, x: Tensor) -> Tensor:
        return rows(t, x).long()

    def loss(self, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        plain = replace(self.process, variance="fixed_small", objective="mse")  # of a learned variance nothing is asked
        return plain.loss_at(network, data, noise, t, label)["loss"]

    def time_of(self, ratio: Tensor) -> Tensor:
        columns = self.process.chain().columns
        table = (columns.sigma / columns.alpha).to(ratio.device)  # [T], rising
        above = torch.searchsorted(table, ratio.double().contiguous()).clamp(1, len(table) - 1)
        return above - (table[above] / ratio > ratio / table[above - 1]).long()

    def problem(self, t: float) -> str | None:
        whole = t == int(t) and 0 < t < self.process.steps
        return None if whole else f"a diffusion's levels are whole steps from {self.process.steps - 1} down to 1"


@dataclass(frozen=True)
class VpLevels(Levels):
    """Steps 1..N of a vp process, real numbers; whole ones where they are drawn."""

    process: VpDiffusion

    @property
    def kind(self) -> Prediction:
        return "noise"

    @property
    def language(self) -> tuple[Any, ...]:
        return "vp", self.process.steps, self.process.schedule

    def draw(self, rng: SampleRng, low: float = 0.0, high: float = 1.0) -> Tensor:
        return _whole(rng, self.process.steps, low, high) + 1

    def spread(self, count: int, shift: float = 1.0) -> tuple[float, ...]:
        return _strided(self.process.steps, self.process.steps, count)

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        return self.process.coefficients(t, x)

    def loss(self, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.process.loss_at(network, data, noise, t.long(), label)["loss"]

    def time_of(self, ratio: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.log1p(ratio.double().square())
        return (self.process.continuous().time(log_alpha) * self.process.steps).clamp(0, self.process.steps).float()

    def problem(self, t: float) -> str | None:
        within = 0 < t <= self.process.steps
        return None if within else f"a vp's levels are steps from {self.process.steps} to above 0"


@dataclass(frozen=True)
class EdmLevels(Levels):
    """Noise levels sigma, spread as Karras et al. 2022 (eq. 5) spread them for sampling."""

    process: Edm
    highest: float = 80.0
    lowest: float = 0.002
    rho: float = 7.0

    @property
    def kind(self) -> Prediction:
        return "data"

    @property
    def language(self) -> tuple[Any, ...]:
        return "edm", self.process.sigma_data

    def draw(self, rng: SampleRng, low: float = 0.0, high: float = 1.0) -> Tensor:
        ends = torch.tensor([self.lowest, self.highest], dtype=torch.float64) ** (1 / self.rho)
        bottom, top = (ends[0].lerp(ends[1], share).item() for share in (low, high))
        return (bottom + rng.uniform() * (top - bottom)) ** self.rho

    def table(self, count: int) -> Tensor:
        """`count` levels [count] float64 from the lowest to the highest, as DMD2 numbers them."""
        return karras(self.highest, self.lowest, count, self.rho)[:-1].flip(0)

    def spread(self, count: int, shift: float = 1.0) -> tuple[float, ...]:
        return tuple(karras(self.highest, self.lowest, count + 1, self.rho)[:-2].tolist())

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        sigma = torch.tensor(t, dtype=torch.float64) if isinstance(t, float) else t.view(-1, *[1] * (x.dim() - 1))
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, torch.zeros_like(sigma), one)

    def pure(self, noise: Tensor, t: Tensor) -> Tensor:
        return self.coefficients(t, noise).sigma * noise

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        c = self.process.scalings(t)
        return c.into.view(-1, *[1] * (x.dim() - 1)) * x, c.t.float()

    def data(self, out: Tensor, x: Tensor, t: Time) -> Tensor:
        c = self.process.scalings(self.coefficients(t, x).sigma)
        return c.skip * x + c.out * out[:, : x.shape[1]]

    def output(self, data: Tensor, x: Tensor, t: Time) -> Tensor:
        c = self.process.scalings(self.coefficients(t, x).sigma)
        return (data - c.skip * x) / c.out

    def loss(self, network: Callable[..., Any], data: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.process.losses_at(network, data, noise, t, label)["loss"]

    def time_of(self, ratio: Tensor) -> Tensor:
        return ratio

    def problem(self, t: float) -> str | None:
        return None if t > 0 else "levels of edm are noise levels sigma above 0"


def levels_of(process: Process) -> Levels:
    """The noise levels of a process. Raises ConfigError for one that has none."""
    match process:
        case Flow():
            return FlowLevels(process)
        case Diffusion():
            return StepLevels(process)
        case VpDiffusion():
            return VpLevels(process)
        case Edm():
            return EdmLevels(process)
    raise ConfigError(f"{type(process).__name__} has no noise levels to distil by; it takes flow, diffusion, vp or edm")


def translate(x: Tensor, t: Tensor, source: Levels, target: Levels) -> tuple[Tensor, Tensor]:
    """States x [B,C,H,W] at levels t of `source` as those of `target` with the same sigma / alpha, and their levels."""
    if source.language == target.language:
        return x, t
    c = source.coefficients(t, x)
    found = target.time_of((c.sigma / c.alpha).flatten())
    return x * (target.coefficients(found, x).alpha / c.alpha), found


def _whole(rng: SampleRng, steps: int, low: float, high: float) -> Tensor:
    """Whole numbers from low * steps to high * steps, both included, within 0..steps-1: [B]."""
    first, last = int(low * steps), min(int(high * steps), steps - 1)
    return first + rng.integers(last - first + 1)


def _strided(first: int, steps: int, count: int) -> tuple[float, ...]:
    return tuple(float(step) for step in range(first, 0, -(steps // count))[:count])
