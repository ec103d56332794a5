"""Processes on the betas that a golden file names, where these are others than the published ones that genlab has.

The reference codes take the ends of a schedule as they are, whatever the number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.processes import schedules
from genlab.processes.diffusion import Diffusion
from genlab.processes.vp import VpDiffusion
from samplers.chain import Chain
from samplers.vp_schedule import Tabulated

_KINDS: dict[str, schedules.ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "sd_linear_sqrt": "scaled_linear",
}
_DESCRIPTION = re.compile(r"(?P<kind>\w+) (?P<start>[\d.e-]+?)\.\.(?P<end>[\d.e-]+), (?P<steps>\d+)")


@dataclass(frozen=True)
class Betas:
    """The betas of a file.

    Args:
        kind: how they rise, by a name of the files.
        start: the first.
        end: the last.

    Raises:
        CheckpointError: another kind.
    """

    kind: str = "sd_linear_sqrt"
    start: float = 0.00085
    end: float = 0.012
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise CheckpointError(f"an unknown schedule {self.kind!r}; known: {', '.join(_KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Betas:
        """From a text such as "sd_linear_sqrt 0.00085..0.012, 1000". Raises CheckpointError."""
        if (match := _DESCRIPTION.fullmatch(text)) is None:
            raise CheckpointError(f"an unknown schedule {text!r}")
        return cls(match["kind"], float(match["start"]), float(match["end"]), int(match["steps"]))

    @property
    def schedule(self) -> schedules.ScheduleName:
        """Our name of their kind."""
        return _KINDS[self.kind]

    @property
    def published(self) -> bool:
        """Whether a process of genlab's has them."""
        return torch.allclose(self.table(), schedules.betas(self.schedule, self.steps), rtol=1e-12, atol=0)

    def table(self) -> Tensor:
        """Float64 [N]."""
        if self.schedule == "linear":
            return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64).square()

    def alpha_bars(self) -> Tensor:
        """alpha^2 after each step, float64 [N]."""
        return torch.cumprod(1 - self.table(), dim=0)

    def diffusion(self) -> Diffusion:
        """The process of DiT and latent diffusion on them."""
        plain = Diffusion(steps=self.steps, schedule=self.schedule)
        return plain if self.published else OtherDiffusion(steps=self.steps, schedule=self.schedule, betas=self)

    def vp(self, resolutions: int = 1, resolution_weights: tuple[float, ...] | None = None) -> VpDiffusion:
        """The process of DiMR on them."""
        kind: Callable[..., VpDiffusion] = VpDiffusion if self.published else OtherVpDiffusion
        own = {} if self.published else {"betas": self}
        return kind(self.steps, self.schedule, resolutions, resolution_weights, **own)


@dataclass(frozen=True)
class OtherDiffusion(Diffusion):
    """On the betas of a file."""

    betas: Betas = field(default_factory=Betas)

    def chain(self, respacing: str = "", device: torch.device | str = "cpu") -> Chain:
        kept = torch.tensor(schedules.respace(self.steps, respacing))
        return Chain(self.betas.alpha_bars()[kept], kept, device)


@dataclass(frozen=True)
class OtherVpDiffusion(VpDiffusion):
    """On the betas of a file."""

    betas: Betas = field(default_factory=Betas)

    def noised(self, data: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        alpha_bar = self.betas.alpha_bars()[step - 1].view(-1, *[1] * (data.dim() - 1))
        return alpha_bar.sqrt().to(data.dtype) * data + (1 - alpha_bar).sqrt().to(data.dtype) * noise

    def continuous(self) -> Tabulated:
        return Tabulated(self.betas.alpha_bars())
