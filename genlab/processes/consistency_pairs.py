"""Which two noise levels of one sample a consistency model must agree at, how that is weighed, and how it tightens.

Each curriculum gives pairs of levels that come closer as training goes on; the shorter of both is the target's.

CT:  "Consistency Models", Song et al., ICML 2023 (arXiv 2303.01469), sections 5 and 6, and its public code.
iCT: "Improved Techniques for Training Consistency Models", Song & Dhariwal, ICLR 2024 (arXiv 2310.14189), section 3.
ECT: "Consistency Models Made Easy", Geng et al., ICLR 2025 (arXiv 2406.14548), and its public code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple, Self, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from genlab.core.settings import Settings
from genlab.processes.distances import HUBER, Metric, distance, pseudo_huber
from samplers.grids import karras
from samplers.noise import SampleRng

LevelWeight: TypeAlias = Literal["uniform", "snr", "karras", "truncated_snr"]


class Pair(NamedTuple):
    """Two noise levels for each sample, all [B]."""

    high: Tensor
    low: Tensor
    """Below `high`; 0 stands for the data itself."""
    weight: Tensor


class Curriculum(Settings):
    """What pairs are drawn at each update, and the distance between the two predictions."""

    averaged_target: ClassVar[bool] = False
    """Whether the target is the network's moving average; else its present weights."""

    @property
    def average_decay(self) -> Callable[[int], float] | None:
        """The decay of that average in update 0, 1, ..., if it has one of its own."""
        return None

    @abstractmethod
    def pair(self, rng: SampleRng, step: int, sigma_data: float) -> Pair:
        """One pair for each stream, at update `step` (0, 1, ...)."""

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """[B] for predictions [B, ...]."""


class ConsistencyTraining(Curriculum):
    """CT: neighbours of a grid that grows finer, compared with a moving average of the network."""

    averaged_target: ClassVar[bool] = True

    name: Literal["ct"] = "ct"
    intervals_start: PositiveInt = 2
    """s0: sets how many intervals the grid has at the first update."""
    intervals_end: PositiveInt = 200
    """s1: intervals at the last update. 200 for ImageNet-64, 150 for LSUN."""
    steps: PositiveInt = 800_000
    """Updates over which the grid grows."""
    target: Literal["adaptive", "fixed"] = "adaptive"
    """Whose average the target is: adaptive keeps one whose decay rises with the number of intervals N, to
    first_decay^(s0 / N); fixed takes the first of training.ema."""
    first_decay: float = Field(0.95, gt=0, lt=1)
    """mu0."""
    metric: Metric = "l2"
    weight: LevelWeight = "uniform"
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0

    def intervals(self, step: int) -> int:
        """N at update `step`: its square grows in a straight line (section 6.1)."""
        share = min(step / self.steps, 1.0)
        first, last = self.intervals_start**2, (self.intervals_end + 1) ** 2
        return max(math.ceil(math.sqrt(share * (last - first) + first) - 1), 1)

    def target_decay(self, step: int) -> float:
        """The decay of the target's average that goes with the grid of update `step`: mu0^(s0 / N)."""
        return math.exp(self.intervals_start * math.log(self.first_decay) / self.intervals(step))

    @property
    def average_decay(self) -> Callable[[int], float] | None:
        return self.target_decay if self.target == "adaptive" else None

    def pair(self, rng: SampleRng, step: int, sigma_data: float) -> Pair:
        grid = descending(self.sigma_max, self.sigma_min, self.intervals(step) + 1, self.rho)
        return self.pair_at(rng.integers(len(grid) - 1), grid, sigma_data)

    def pair_at(self, index: Tensor, grid: Tensor, sigma_data: float) -> Pair:
        """The pairs of neighbours from `index` int64 [B] of the falling `grid` on."""
        high, low = neighbours(grid, index)
        return Pair(high, low, level_weight(self.weight, high, sigma_data))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return distance(self.metric, a, b)


class ImprovedConsistencyTraining(Curriculum):
    """iCT: a grid that doubles, levels drawn log-normally, a robust distance, no moving average."""

    name: Literal["ict"] = "ict"
    intervals_start: PositiveInt = 10
    """s0."""
    intervals_end: PositiveInt = 1280
    """s1."""
    steps: PositiveInt = 400_000
    """Updates of the whole curriculum."""
    log_mean: float = -1.1
    log_std: PositiveFloat = 2.0
    """Mean and standard deviation of ln(sigma)."""
    huber: NonNegativeFloat = HUBER
    """c of the pseudo-Huber distance, as a share of the square root of the number of elements."""
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.intervals_end < self.intervals_start:
            raise ValueError(
                f"intervals_end must not be below intervals_start: got {self.intervals_end} and {self.intervals_start}"
            )
        return self

    @property
    def stage(self) -> int:
        """Updates between two doublings, K'."""
        return max(math.floor(self.steps / (math.log2(self.intervals_end // self.intervals_start) + 1)), 1)

    def levels(self, step: int) -> int:
        """Noise levels of the grid at update `step` (eq. 14)."""
        doublings = min(step // self.stage, 64)  # enough for any end
        return min(self.intervals_start * 2**doublings, self.intervals_end) + 1

    def grid(self, step: int) -> Tensor:
        """The rising noise levels at update `step`, float64."""
        return self.grid_of(self.levels(step))

    def grid_of(self, levels: int) -> Tensor:
        """So many rising noise levels, float64."""
        return descending(self.sigma_max, self.sigma_min, levels, self.rho).flip(0)

    def probabilities(self, grid: Tensor) -> Tensor:
        """Of the intervals of `grid` [N] -> [N-1]: the log-normal density, discretised (eq. 13)."""
        edges = torch.erf((grid.log() - self.log_mean) / (math.sqrt(2) * self.log_std))
        mass = edges.diff()
        return mass / mass.sum()

    def pair(self, rng: SampleRng, step: int, sigma_data: float) -> Pair:
        grid = self.grid(step)
        share = self.probabilities(grid).cumsum(0).to(rng.device, torch.float32)
        index = torch.searchsorted(share[:-1], rng.uniform(), right=True)  # [B]
        return self.pair_at(index, grid)

    def pair_at(self, index: Tensor, grid: Tensor) -> Pair:
        """The pairs of neighbours from `index` int64 [B] of the rising `grid` on."""
        low, high = neighbours(grid, index)
        return Pair(high, low, 1 / (high - low))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return pseudo_huber(a, b, self.huber * math.sqrt(a[0].numel()))


class EasyConsistencyTuning(Curriculum):
    """ECT: from a trained diffusion model, continuous levels whose ratio tightens by a factor each stage."""

    name: Literal["ect"] = "ect"
    log_mean: float = -1.1
    log_std: PositiveFloat = 2.0
    """Mean and standard deviation of ln(sigma)."""
    ratio: float = Field(2.0, gt=1)
    """q: the gap shrinks by this factor each stage. 2 for CIFAR-10, 4 for ImageNet-64."""
    mapping: Literal["sigmoid", "const"] = "sigmoid"
    """How the gap depends on the level: 1 + gain sigmoid(-slope sigma), or not at all."""
    gain: NonNegativeFloat = 8.0
    """k."""
    slope: float = 1.0
    """b."""
    stage_steps: PositiveInt = 25_000
    """Updates between two tightenings."""
    stages: PositiveInt = 8
    """After as many, the gap stays."""
    weight: Literal["gap", "snr"] = "gap"
    """1 / (t - r) as for CIFAR-10, or EDM's weight 1/sigma^2 + 1/sigma_data^2 as for ImageNet-64."""
    huber: NonNegativeFloat = 0.0
    """c of the distance sqrt(|a - b|^2 + c^2) - c; 0 is the Euclidean norm."""

    def pair(self, rng: SampleRng, step: int, sigma_data: float) -> Pair:
        stage = min(step // self.stage_steps, self.stages - 1)
        return self.pair_at(rng.normal(), stage, sigma_data)

    def pair_at(self, normal: Tensor, stage: int, sigma_data: float) -> Pair:
        """The pairs for standard normal numbers [B] in stage 0, 1, ... of the curriculum."""
        high = (self.log_std * normal + self.log_mean).exp()
        gap = 1 + self.gain * torch.sigmoid(-self.slope * high) if self.mapping == "sigmoid" else torch.ones_like(high)
        low = (high * (1 - gap / self.ratio ** (stage + 1))).clamp(min=0)
        weight = 1 / (high - low) if self.weight == "gap" else level_weight("karras", high, sigma_data)
        return Pair(high, low, weight)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return pseudo_huber(a, b, self.huber)


def level_weight(name: LevelWeight, sigma: Tensor, sigma_data: float) -> Tensor:
    """Weights at noise levels `sigma`, by their names in the public code of consistency models."""
    match name:
        case "uniform":
            return torch.ones_like(sigma)
        case "snr":
            return sigma**-2
        case "karras":
            return sigma**-2 + sigma_data**-2
        case "truncated_snr":
            return (sigma**-2).clamp(min=1.0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def descending(highest: float, lowest: float, levels: int, rho: float) -> Tensor:
    """`levels` noise levels from `highest` to `lowest`, float64 on the CPU (Karras et al. 2022, eq. 5)."""
    return karras(highest, lowest, levels, rho)[:-1]


def neighbours(grid: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """grid[index] and grid[index + 1], float32 on the device of `index`."""
    levels = grid.to(index.device, torch.float32)
    return levels[index], levels[index + 1]
