"""How stacks of residual codes are sampled: all masked codes of a position are drawn as one vector, which is coded.

"Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", Kim et al., ICML 2025 (arXiv
2412.10208), with choices of ours where the paper is silent to us. A step draws a vector for every position from the
network's mixture, decides how many codes each position reveals, and only then searches these codes: how sure a vector
is does not depend on them, and all others would be discarded. So an image costs as many searches as it has codes, and
the number of network calls does not depend on the depth.

Letters: B batch, L positions, D depths, C channels of a code vector, M components of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from genlab.core.contracts import SamplingSettings
from genlab.nn.mixture import Mixture
from genlab.processes.guidance import combine
from samplers import residual_fill
from samplers.categorical import exponential, filtered, greedy
from samplers.noise import SampleRng
from samplers.residual_fill import Schedule, Search


class Quantizer(Protocol):
    """What this process needs of a residual quantiser; see genlab.tokenization.quantizers.residual."""

    depth: int
    vocab: int

    def book(self, depth: int) -> Any:
        """The codes of a depth: `table() -> [V,C]`, float32."""

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [...,D] -> their vectors [...,D,C]."""


class Decoder(Protocol):
    """A network for given labels; see genlab.networks.resgen."""

    def step(self, visible: Tensor, masked: Tensor, unit: Tensor) -> Mixture:
        """Sums of visible vectors [B,L,C] and numbers of masked codes [B,L] -> the mixture [B,L] of what is masked,
        whose standard deviation is about `unit` [B,L]."""


class ResidualSampling(SamplingSettings):
    """Settings of ResGen's sampling."""

    steps: PositiveInt = 16
    """Network calls (two each under guidance), at most as many as an image has codes. Best published: 63."""
    schedule: Schedule = "circle"
    """How the share of masked codes falls: circle, cosine, arccos or linear."""
    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance; 1 is none and costs half. The paper's count is probably one less."""
    guidance_ramp: Literal["linear", "constant"] = "linear"
    """linear: guidance rises from 1, none, at the first step by even steps towards its scale."""
    guide_means: NonNegativeFloat = 0.0
    """Share of the guidance that the mixture's means and shift get; its weights always get all, its scale none."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw among the fewest components that make up this share of the probability: high with guidance, lower without.
    By default among all."""
    component_temperature: NonNegativeFloat = 1.0
    """Of the choice of a component; 0 takes the likeliest."""
    noise_temperature: NonNegativeFloat = 1.0
    """Of the noise around a component's mean; 1 is exact, 0 takes the mean."""
    confidence: Literal["likelihood", "weight", "residual"] = "likelihood"
    """What a position's codes are revealed by: the density of its vector, the weight of its component alone, or for
    each code by itself how little of the vector is left over after it (which searches all masked codes at each step).
    """
    confidence_temperature: NonNegativeFloat = 2.0
    """Of that choice, falling to 0 at the last step: 0 reveals the surest only, much reveals at random."""
    literal_steps: bool = False
    """Follow the schedule where its first steps round to none; otherwise every step reveals a code."""

    def idle(self) -> set[str]:
        return {"guidance_ramp", "guide_means"} if self.guidance == 1 else set()

    def scale(self, step: int) -> float:
        """Guidance at step 0..steps-1."""
        if self.guidance_ramp == "constant":
            return self.guidance
        return 1 + (self.guidance - 1) * step / self.steps


class Noise(NamedTuple):
    """Random numbers of a step."""

    component: Tensor
    """[B,L,M], Gumbel."""
    latent: Tensor
    """[B,L,C], normal."""
    reveal: Tensor
    """[B,L,D], Gumbel, for the masked codes of a position in the order in which they are revealed."""


Draw: TypeAlias = Callable[[int, int], Noise]
"""(step, M) -> its noise."""


def streams(rng: SampleRng, positions: int, depth: int, channels: int) -> Draw:
    """Noise from the samples' own streams."""

    def draw(step: int, count: int) -> Noise:
        stream = rng.fork(step)
        return Noise(
            -exponential(stream, positions, count).log(),
            stream.normal(positions, channels),
            -exponential(stream, positions, depth).log(),
        )

    return draw


@dataclass(frozen=True)
class Latents:
    """A quantiser's vectors as networks see them: times one constant, which makes their sums' variance 1."""

    quantizer: Quantizer
    scale: float = 1.0
    units: tuple[float, ...] | None = None
    """About the standard deviation of the sum of the last k vectors, for k = 0..D (of none: anything); None: 1."""

    def vectors(self, codes: Tensor) -> Tensor:
        """Codes [...,D] -> [...,D,C]. Raises DataError for codes that do not exist."""
        return self.quantizer.embed(codes) * self.scale

    def found(self, codes: Tensor) -> Tensor:
        """As `vectors`, of codes that a search gave: they are not checked, which would wait for the device."""
        parts = [F.embedding(part, self.quantizer.book(depth).table()) for depth, part in enumerate(codes.unbind(-1))]
        return torch.stack(parts, dim=-2) * self.scale

    def spread(self, device: torch.device) -> Tensor:
        """`units` [D+1] as a tensor, to be looked up by numbers of masked codes."""
        return torch.tensor(self.units or [1.0] * (self.quantizer.depth + 1), device=device)

    def searcher(self) -> Search:
        """Finds nearest codes; what depends on the codebooks alone is computed once for each depth."""
        biases: dict[int, Tensor] = {}

        def search(depth: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
            table = self.quantizer.book(depth).table()  # [V,C]
            if depth not in biases:
                biases[depth] = table.square().sum(1) * -0.5
            scores = torch.addmm(biases[depth], vectors / self.scale, table.T)  # [M,V], |x|^2 / 2 less the distance
            codes = scores.argmax(1)
            return codes, F.embedding(codes, table) * self.scale

        return search


class State(NamedTuple):
    """What is known of a batch between steps."""

    codes: Tensor
    """int64 [B,L,D]; those masked mean nothing."""
    masked: Tensor
    """int64 [B,L]: the last so many codes of a position are masked."""
    visible: Tensor
    """[B,L,C], sums of the vectors of the others."""


class Round(NamedTuple):
    """One step, as it was sampled."""

    before: State
    component: Tensor
    """int64 [B,L]."""
    latent: Tensor
    """[B,L,C], the sum of all masked vectors, as drawn."""
    confidence: Tensor
    """[B,L,1], or [B,L,D] for each masked code."""
    after: State


def blank(batch: int, positions: int, channels: int, depth: int, device: torch.device) -> State:
    """Everything masked."""
    codes = torch.zeros(batch, positions, depth, dtype=torch.int64, device=device)
    visible = torch.zeros(batch, positions, channels, device=device)
    return State(codes, torch.full_like(codes[..., 0], depth), visible)


def given(codes: Tensor, keep: Tensor, latents: Latents) -> State:
    """Codes [B,L,D] of images of which the positions in `keep`, bool [L], stay."""
    masked = torch.where(keep, 0, codes.shape[-1]).expand(codes.shape[:-1])
    return State(codes, masked, latents.vectors(codes).sum(-2) * keep.unsqueeze(-1))


def generate(
    decoder: Decoder,
    latents: Latents,
    state: State,
    counts: list[int],
    settings: ResidualSampling,
    noise: Draw,
    guided: bool = False,
) -> Iterator[Round]:
    """Reveal codes step by step until `counts`, the numbers of masked codes of an image, is at its end.

    Args:
        decoder: for the labels [B]; with `guided` for twice as many, the second half of which is the null label.
        counts: before each step and after the last, see samplers.residual_fill.plan.
    """
    search, units = latents.searcher(), latents.spread(state.masked.device)
    for step, (before, after) in enumerate(pairwise(counts)):
        mixture = _mixture(
            decoder, state, units[state.masked], settings.scale(step) if guided else 1.0, settings.guide_means
        )
        log_weights = mixture.log_weights()  # [B,L,M]
        drawn = noise(step, log_weights.shape[-1])
        allowed = filtered(log_weights, None, settings.top_p)
        component = greedy(allowed + settings.component_temperature * drawn.component)  # [B,L]
        latent = mixture.points(component, settings.noise_temperature * drawn.latent)  # [B,L,C]
        confidence = _confidence(settings, mixture, log_weights, component, latent, state, latents)
        cooled = settings.confidence_temperature * (1 - (step + 1) / settings.steps)
        if before > after:
            count = residual_fill.reveal(confidence, state.masked, drawn.reveal, before - after, cooled)
            reached = _reveal(state, latent, count, before - after, search)
        else:
            reached = state
        yield Round(state, component, latent, confidence, reached)
        state = reached


def guess(state: State, latent: Tensor, latents: Latents) -> Tensor:
    """Codes [B,L,D] as a step promises them: the visible ones, and those of all masked depths of its drawn vectors."""
    return _reveal(state, latent, state.masked, state.masked.shape[1], latents.searcher()).codes


def _reveal(state: State, latent: Tensor, count: Tensor, most: int, search: Search) -> State:
    """The next `count` codes [B,L] of each position become visible, none of them at more than `most` positions."""
    first = state.codes.shape[-1] - state.masked
    codes, added = residual_fill.quantise(latent, state.codes, first, count, search, most)
    return State(codes, state.masked - count, state.visible + added)


def _mixture(decoder: Decoder, state: State, unit: Tensor, guidance: float, share: float) -> Mixture:
    """The mixture [B,L] of a step, guided in its weights, and by a share of that in its means and shift."""
    if guidance == 1:
        return decoder.step(state.visible, state.masked, unit)
    both = decoder.step(state.visible.repeat(2, 1, 1), state.masked.repeat(2, 1), unit.repeat(2, 1))
    means = 1 + (guidance - 1) * share
    return both._replace(
        logits=_guided(both.logits, guidance),
        factors=_guided(both.factors, means),
        shift=_guided(both.shift, means),
        log_scale=both.log_scale.chunk(2)[0],
    )


def _guided(both: Tensor, scale: float) -> Tensor:
    """[B,...] of conditional and unconditional rows [2B,...]."""
    conditional, unconditional = both.chunk(2)
    return combine(conditional, unconditional, scale, None)


def _confidence(
    settings: ResidualSampling,
    mixture: Mixture,
    log_weights: Tensor,
    component: Tensor,
    latent: Tensor,
    state: State,
    latents: Latents,
) -> Tensor:
    """[B,L,1] or [B,L,D]; see ResidualSampling.confidence."""
    if settings.confidence == "likelihood":
        return (log_weights + mixture.log_densities(latent)).logsumexp(-1, keepdim=True)
    if settings.confidence == "weight":
        return log_weights.gather(-1, component.unsqueeze(-1))
    depth = state.codes.shape[-1]
    first = depth - state.masked  # [B,L]
    codes = guess(state, latent, latents)
    own = ~residual_fill.visible(state.masked, depth)  # [B,L,D]
    sums = (latents.found(codes) * own.unsqueeze(-1)).cumsum(-2)  # [B,L,D,C]
    left = -(latent.unsqueeze(-2) - sums).square().sum(-1)  # [B,L,D], after each depth
    order = (first.unsqueeze(-1) + torch.arange(depth, device=left.device)).clamp_max(depth - 1)
    return left.gather(-1, order)
