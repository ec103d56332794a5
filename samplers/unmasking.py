"""Parallel decoding of masked tokens: how many stay masked after each step, which of them, and what the others become.

Every step proposes a token for each masked position, keeps those that come first by some score and masks the rest anew.
"MaskGIT", Chang et al., CVPR 2022 (arXiv 2202.04200) and "ENAT", Ni et al., NeurIPS 2024 (arXiv 2411.06959) differ in
temperatures and counts only. All counts are known to the host before the loop, so nothing in it waits for the device,
and only masked positions are ever worked on.

Letters: B batch, L positions, m masked now, n revealed by the step before, V vocabulary, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from samplers.categorical import exponential, filtered
from samplers.noise import SampleRng

Schedule: TypeAlias = Callable[[Tensor], Tensor]
"""Progress in [0,1] -> the share of positions that is masked, falling from 1 to 0; float64 for exact counts."""
SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda progress: torch.cos(progress * (math.pi / 2)),
    "linear": lambda progress: 1 - progress,
    "arccos": lambda progress: torch.arccos(progress) * (2 / math.pi),
}
Law: TypeAlias = Literal["constant", "rising", "falling"]
COLDEST = 1e-3
"""Temperatures that fall stop here (ENAT): the likeliest token, but for near ties."""


def share(law: Law, step: int, steps: int) -> float:
    """Which share of a strength holds in step 0..T-1: 1; t/T, none in the first; or 1 - (t+1)/T, none in the last."""
    return {"constant": 1.0, "rising": step / steps, "falling": 1 - (step + 1) / steps}[law]


def table(points: Sequence[tuple[float, float]]) -> Schedule:
    """The schedule through points (progress, share), straight between them; progress rises from 0 to 1."""
    xs, ys = torch.tensor(points, dtype=torch.float64).T.contiguous()

    def at(progress: Tensor) -> Tensor:
        x, y = xs.to(progress), ys.to(progress)
        right = torch.searchsorted(x, progress, right=True).clamp(1, len(x) - 1)
        along = (progress - x[right - 1]) / (x[right] - x[right - 1])
        return torch.lerp(y[right - 1], y[right], along)

    return at


def counts(schedule: Schedule, length: int, steps: int, clamp: bool = False) -> list[int]:
    """How many of `length` tokens are still masked after each step; 0 after the last.

    Args:
        clamp: every step reveals at least one token and every one but the last leaves one (MaskGIT). Without it steps
            may reveal nothing, as in ENAT.

    Raises:
        ValueError: `clamp` with more steps than tokens.
    """
    if clamp and steps > length:
        raise ValueError(f"{steps} steps that each reveal a token need as many tokens: there are {length}")
    progress = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps
    left = (length * schedule(progress) + 1e-9).floor().long().tolist()  # rounding must not lose a whole number
    left[-1], before = 0, length
    for step in range(steps - 1):
        if clamp:  # each later step, too, needs a token to reveal
            left[step] = max(left[step], steps - 1 - step)
        left[step] = before = min(left[step], before - 1 if clamp else before)
    return left


@cache
def halton(height: int, width: int) -> Tensor:
    """When each position of a grid is revealed: int64 [H*W], ranks 0..H*W-1 in raster order.

    The cells follow the two-dimensional Halton sequence (bases 2 and 3), which spreads any first few of them evenly.
    """
    cells: dict[int, int] = {}
    index = 0
    while len(cells) < height * width:
        index += 1
        cell = int(_radical_inverse(index, 2) * height) * width + int(_radical_inverse(index, 3) * width)
        cells.setdefault(cell, len(cells))
    return torch.tensor([cells[cell] for cell in range(height * width)], device="cpu")


def gumbel(rng: SampleRng, *shape: int) -> Tensor:
    """[B,*shape] float32, Gumbel(0, 1), from the samples' own streams."""
    return exponential(rng, *shape).log_().neg_()


def draw(
    logits: Tensor,
    temperature: float,
    noise: Callable[[], Tensor],
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B,m] from softmax(log p / temperature), and their log p [B,m], for logits [B,m,V].

    Args:
        temperature: 0 takes the likeliest.
        noise: gives Gumbel noise [B,m,V].
        top_k, top_p: draw among the likeliest only; see `filtered`. They look at p, not at what the temperature makes
            of it.
    """
    logp = logits.log_softmax(-1)
    allowed = logp if temperature == 0 else filtered(logp, top_k, top_p) / temperature + noise()
    tokens = allowed.argmax(-1)
    return tokens, logp.gather(-1, tokens[..., None])[..., 0]


class Proposal(NamedTuple):
    """What a step makes of the masked positions."""

    tokens: Tensor
    """int64 [B,m]."""
    score: Tensor
    """[B,m]; the highest are revealed."""


Propose: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Proposal]
"""(step, tokens [B,L], masked [B,m], fresh [B,n]) -> a proposal; positions are sorted."""


class Unmasked(NamedTuple):
    """The state after a step."""

    guess: Tensor
    """int64 [B,L]: a token everywhere."""
    tokens: Tensor
    """int64 [B,L]: the mask where the next step proposes."""


def unmask(
    propose: Propose, tokens: Tensor, masked: Tensor, fresh: Tensor, left: Sequence[int], mask_token: int
) -> Iterator[Unmasked]:
    """Fill the masked positions, step by step.

    Args:
        tokens: int64 [B,L].
        masked: int64 [B,m], the positions to fill, sorted.
        fresh: int64 [B,L-m], the others, sorted.
        left: how many are masked after each step, see `counts`. Nothing is proposed once none is.
    """
    for step, count in enumerate(left):
        if masked.shape[1] == 0:  # an earlier step has left nothing
            yield Unmasked(tokens, tokens)
            continue
        proposal = propose(step, tokens, masked, fresh)
        guess = tokens.scatter(1, masked, proposal.tokens)
        order = proposal.score.argsort(dim=1, stable=True)  # from the least sure to the surest
        again, done = order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values
        masked, fresh = masked.gather(1, again), masked.gather(1, done)
        tokens = guess.scatter(1, masked, mask_token)
        yield Unmasked(guess, tokens)


def _radical_inverse(index: int, base: int) -> float:
    """The digits of `index` behind the point instead of before it: 0.d0 d1 d2 ... (van der Corput)."""
    value, unit = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        unit /= base
        value += digit * unit
    return value
