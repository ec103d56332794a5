"""How a discrete diffusion adds noise, and which of its steps are kept for sampling.

The linear schedule is Ho et al. (2020), the cosine one Nichol & Dhariwal (2021, eq. 17), scaled_linear that of latent
diffusion (Rombach et al. 2022); respacing is Nichol & Dhariwal's (section 4).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from genlab.core.errors import ConfigError
from samplers.chain import Chain

ScheduleName: TypeAlias = Literal["linear", "cosine", "scaled_linear"]
RESPACING = re.compile(r"(?:ddim|trailing)?[1-9]\d*|[1-9]\d*(?:,[1-9]\d*)+|")
"""What a respacing string looks like: a count, perhaps after "ddim" or "trailing"; counts between commas; nothing."""


def betas(schedule: ScheduleName, steps: int) -> Tensor:
    """beta_k, float64 [steps]. Their published ends are for 1000 steps; with fewer steps each adds more noise."""
    scale = 1000 / steps
    match schedule:
        case "linear":
            return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999)
        case "scaled_linear":
            ends = (0.00085 * scale) ** 0.5, (0.012 * scale) ** 0.5
            return torch.linspace(*ends, steps, dtype=torch.float64).square().clamp(max=0.999)
        case "cosine":
            u = torch.arange(steps + 1, dtype=torch.float64) / steps
            alpha_bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2).square()
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def alpha_bars(schedule: ScheduleName, steps: int, zero_terminal_snr: bool = False) -> Tensor:
    """alpha^2 after each step, float64 [steps].

    Args:
        zero_terminal_snr: shift and scale alpha so that the last state is pure noise and the first stays as it is (Lin
            et al. 2024, algorithm 1).
    """
    alpha_bar = torch.cumprod(1 - betas(schedule, steps), dim=0)
    if not zero_terminal_snr:
        return alpha_bar
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))).square()


def respace(steps: int, respacing: str) -> list[int]:
    """The steps out of 0..steps-1 that `respacing` keeps, in rising order.

    Args:
        respacing: "50": so many, evenly from first to last; "10,15,20": the steps are cut into as many equal sections
            as there are counts, with so many evenly in each; "ddim50": every n-th from 0 on, n chosen to give so many;
            "trailing50": so many, evenly from the last down, the first of them left out; "": all of them.

    Raises:
        ConfigError: not of this form, or more are asked for than there are.
    """
    if RESPACING.fullmatch(respacing) is None:
        raise ConfigError(f"respacing {respacing!r} is not understood; write 50, ddim50, trailing50 or 10,15,20")
    if not respacing:
        return list(range(steps))
    if respacing.startswith("ddim"):
        return _strided(steps, int(respacing.removeprefix("ddim")))
    if respacing.startswith("trailing"):
        return _trailing(steps, int(respacing.removeprefix("trailing")))
    counts = [int(count) for count in respacing.split(",")]
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))
        if count > size:
            raise ConfigError(f"respacing {respacing!r} asks for {count} steps out of {size}; choose at most {size}")
        kept += [start + offset for offset in _evenly(size, count)]
        start += size
    return kept


def _evenly(size: int, count: int) -> list[int]:
    """`count` of 0..size-1 from first to last, with the rounding of Nichol & Dhariwal's code: strides are added up."""
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    offsets: list[int] = []
    place = 0.0
    for _ in range(count):
        offsets.append(round(place))
        place += stride
    return offsets


def _strided(steps: int, count: int) -> list[int]:
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return list(range(0, steps, stride))
    raise ConfigError(f"no whole stride takes exactly {count} of {steps} steps: respacing 'ddim{count}'; try '{count}'")


def _trailing(steps: int, count: int) -> list[int]:
    if count > steps:
        raise ConfigError(f"respacing 'trailing{count}' asks for {count} steps out of {steps}; choose at most {steps}")
    return [round(steps * place / count) - 1 for place in range(1, count + 1)]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def chain(schedule: ScheduleName, steps: int, zero_terminal_snr: bool, respacing: str, device: torch.device) -> Chain:
    """The tables of a diffusion reduced to the steps that `respacing` keeps, resident on `device`."""
    kept = torch.tensor(respace(steps, respacing), device="cpu")
    return Chain(alpha_bars(schedule, steps, zero_terminal_snr)[kept], kept, device)
