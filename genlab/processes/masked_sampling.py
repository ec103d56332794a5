"""How a masked generator samples: its settings, guidance, and the proposals of each step.

Letters: B batch, H W grid, L = H*W positions, m masked now, n fresh, V vocabulary, T steps, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self, cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from genlab.core.contracts import SamplingSettings
from genlab.core.errors import ConfigError
from genlab.processes.guidance import combine
from genlab.processes.mask_schedules import ScheduleName, Table, schedule_of
from samplers.noise import SampleRng
from samplers.unmasking import COLDEST, Law, Proposal, Unmasked, counts, draw, gumbel, halton, share, unmask


class Decoder(Protocol):
    """One generation of a network: its labels are known, and so is what it has computed of visible tokens."""

    def step(self, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        """Logits [B,m,V] at the masked positions.

        Args:
            tokens: int64 [B,L], the mask where unknown.
            masked: int64 [B,m], sorted positions.
            fresh: int64 [B,n], sorted: visible now and unknown to this decoder so far.
        """


class Critic(Decoder, Protocol):
    """The decoder of a network that also judges."""

    def judge(self, tokens: Tensor) -> Tensor:
        """Codes [B,L] -> logits [B,L] that they were given, not guessed."""


class MaskedNetwork(Protocol):
    """What sampling needs of a network."""

    num_classes: int
    vocab: int
    mask_token: int
    positions: int

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""

    def decoder(self, label: Tensor) -> Decoder:
        """Begin a generation for label [B]."""


class Noise(Protocol):
    """Gumbel(0, 1) noise for the masked positions int64 [B,m] of a step."""

    def of_tokens(self, step: int, masked: Tensor, vocab: int) -> Tensor:
        """[B,m,V], which chooses the tokens."""

    def of_scores(self, step: int, masked: Tensor) -> Tensor:
        """[B,m], which shuffles the order in which they are revealed."""


@dataclass(frozen=True)
class Streams:
    """Noise from the samples' own streams."""

    rng: SampleRng

    def of_tokens(self, step: int, masked: Tensor, vocab: int) -> Tensor:
        return gumbel(self.rng.fork(2 * step), masked.shape[1], vocab)

    def of_scores(self, step: int, masked: Tensor) -> Tensor:
        return gumbel(self.rng.fork(2 * step + 1), masked.shape[1])


class MaskedSampling(SamplingSettings):
    """Settings of masked decoding; the defaults are ENAT's at 256 x 256.

    MaskGIT: guidance 1, temperature 1 with law constant, confidence_temperature 4.5, clamp.
    """

    steps: PositiveInt = 8
    """T, network calls for an image."""
    guidance: float = Field(3.5, ge=0)
    """Scale of classifier-free guidance; 1 is none and costs half. ENAT's "cfg" is one less: its 2.5 is 3.5 here."""
    guidance_law: Law = "rising"
    """How much of it each step gets. rising: t/T, none in the first step, which then costs half (ENAT); falling:
    1 - (t+1)/T; constant."""
    temperature: float = Field(6.0, ge=0)
    """Of the draws of tokens; 0 takes the likeliest."""
    temperature_law: Law = "falling"
    """How much of it each step gets, at least 0.001; ENAT: falling, MaskGIT: constant."""
    confidence_temperature: float = Field(1.5, ge=0)
    """Gumbel noise on the log-probabilities by which tokens are revealed; 0: the surest first."""
    confidence_law: Law = "falling"
    """How much of it each step gets."""
    order: Literal["confidence", "halton", "critic"] = "confidence"
    """What is revealed first: the surest tokens, positions evenly spread over the image (a Halton sequence), or what a
    critic takes for real, at the price of another network call a step."""
    schedule: ScheduleName = "cosine"
    """Share of tokens that is still masked over the steps."""
    table: Table | None = None
    """Of schedule learned: (progress, share), or the file that holds them."""
    clamp: bool = False
    """Every step reveals a token (MaskGIT); otherwise some of many steps may reveal none."""
    top_k: PositiveInt | None = None
    """Draw among the so many likeliest tokens. By default among all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Then among the fewest that make up this share of the probability, before the temperature."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        schedule_of(self.schedule, self.table)
        return self

    def idle(self) -> set[str]:
        unused = {"guidance_law"} if self.guidance == 1 else set()
        if self.temperature == 0:
            unused |= {"temperature_law", "top_k", "top_p"}
        elif self.top_k == 1:
            unused |= {"temperature", "temperature_law", "top_p"}
        if self.order == "halton":
            unused |= {"confidence_temperature", "confidence_law"}
        if self.confidence_temperature == 0:
            unused |= {"confidence_law"}
        return unused if self.schedule == "learned" else unused | {"table"}

    def left(self, tokens: int) -> list[int]:
        """How many of so many tokens are masked after each step.

        Raises:
            ConfigError: with `clamp`, more steps than tokens.
        """
        try:
            return counts(schedule_of(self.schedule, self.table), tokens, self.steps, self.clamp)
        except ValueError:
            raise ConfigError(
                f"sampling.steps must lie in 1..{tokens}, the tokens to make, as sampling.clamp is on: got {self.steps}"
            ) from None

    def scales(self) -> list[float]:
        """Guidance of each step."""
        return [1 + (self.guidance - 1) * share(self.guidance_law, step, self.steps) for step in range(self.steps)]

    def temperature_at(self, step: int) -> float:
        """The temperature of a step's draws."""
        if self.temperature == 0 or self.top_k == 1:
            return 0.0
        return max(self.temperature * share(self.temperature_law, step, self.steps), COLDEST)


@dataclass(frozen=True)
class Given:
    """What of given images stays."""

    tokens: Tensor
    """int64 [B,L]."""
    keep: Tensor
    """bool [L]."""


class Generation:
    """One batch while its tokens form; nothing in `run` waits for the device.

    Args:
        label: [B].
        grid: (H, W).
        given: what to keep of given images; None: nothing, there are none.

    Attributes:
        finite: bool [B], whether the network's logits have been so far.

    Raises:
        ConfigError: settings that do not fit the network or the number of tokens.
    """

    def __init__(
        self,
        network: MaskedNetwork,
        label: Tensor,
        grid: tuple[int, int],
        settings: MaskedSampling,
        noise: Noise,
        given: Given | None = None,
    ):
        if settings.top_k is not None and settings.top_k > network.vocab:
            raise ConfigError(
                f"sampling.top_k must lie in 1..{network.vocab}, the number of codes: got {settings.top_k}"
            )
        self.settings, self.noise, self.mask_token = settings, noise, network.mask_token
        if given is None:
            nothing = label.new_zeros(network.positions, dtype=torch.bool)
            given = Given(label.new_zeros(len(label), network.positions), nothing)
        self.tokens = given.tokens.masked_fill(~given.keep, network.mask_token)  # [B,L]
        self.masked, self.fresh = (at.nonzero().T.expand(len(label), -1) for at in (~given.keep, given.keep))
        self.left = settings.left(self.masked.shape[1])
        self.critic = self._critic(network, label) if settings.order == "critic" else None
        self.ranks = halton(*grid).to(label.device) if settings.order == "halton" else None
        self.finite = torch.ones_like(label, dtype=torch.bool)
        self.scales = settings.scales()
        self.guided = network.num_classes > 0 and any(scale != 1 for scale in self.scales)
        labels = torch.cat([label, torch.full_like(label, network.null_label)]) if self.guided else label
        self.decoder = network.decoder(labels)
        # While nothing is visible a decoder has nothing to remember, so that another one can take the first step.
        alone = self.guided and self.scales[0] == 1 and self.fresh.shape[1] == 0
        self.first = network.decoder(label) if alone else None

    def run(self) -> Iterator[Unmasked]:
        """The states after each step; every tensor in them is new."""
        return unmask(self.propose, self.tokens, self.masked, self.fresh, self.left, self.mask_token)

    def propose(self, step: int, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Proposal:
        """Tokens for the masked positions, drawn from the guided logits, and how sure each of them is."""
        settings = self.settings
        logits = self.logits(step, tokens, masked, fresh)  # [B,m,V]

        def noise() -> Tensor:
            return self.noise.of_tokens(step, masked, logits.shape[-1])

        drawn, score = draw(logits, settings.temperature_at(step), noise, settings.top_k, settings.top_p)
        self.finite &= score.isfinite().all(1)
        if self.ranks is not None:
            return Proposal(drawn, -self.ranks[masked])
        if self.critic is not None and self.left[step] > 0:  # else all of them are revealed
            score = self.critic(tokens.scatter(1, masked, drawn)).float().gather(1, masked)
        strength = settings.confidence_temperature * share(settings.confidence_law, step, settings.steps)
        return Proposal(drawn, score + strength * self.noise.of_scores(step, masked) if strength else score)

    def _critic(self, network: MaskedNetwork, label: Tensor) -> Callable[[Tensor], Tensor]:
        """Codes [B,L] -> how real each looks, [B,L]."""
        if getattr(network, "critic", None) is None:
            raise ConfigError("sampling.order=critic: this network was trained without one; take confidence or halton")
        return cast(Critic, network.decoder(label)).judge

    def logits(self, step: int, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        """Guided, float32 [B,m,V]. Conditional and unconditional rows run as one batch."""
        if step == 0 and self.first is not None:
            return self.first.step(tokens, masked, fresh).float()
        if not self.guided:
            return self.decoder.step(tokens, masked, fresh).float()
        twice = (torch.cat([part, part]) for part in (tokens, masked, fresh))
        conditional, unconditional = self.decoder.step(*twice).float().chunk(2)
        return combine(conditional, unconditional, self.scales[step], None)
