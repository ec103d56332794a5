"""How a next-scale generator samples: its settings, guidance and choices scale by scale, and what an edit keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from genlab.core.contracts import SamplingSettings
from genlab.core.errors import ConfigError
from genlab.nn.scales import Grid, Schedule, grids_of, lengths_of
from genlab.processes.guidance import combine
from samplers.categorical import choose, exponential, filtered, greedy, soft_choice
from samplers.noise import SampleRng

Side: TypeAlias = PositiveInt | tuple[PositiveInt, PositiveInt]
Noise: TypeAlias = Callable[[int, int, int], Tensor]
"""(scale k, its positions l, V) -> the Exp(1) noise [B,l,V] that chooses its codes."""
_FORBIDDEN = -100.0  # the logit of codes that are never drawn
_COARSE = 3  # scales of so few positions are kept whole in an edit


class MultiscaleTokenizer(Protocol):
    """What this process needs of a tokenizer; see genlab.tokenization.multiscale."""

    def encode(self, images: Tensor, scales: Schedule | None = None) -> Tensor:
        """Images -> codes [B,L]."""

    def inputs(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        """Codes [B,L] -> what stands at the scales after the first, [B,L-l_0,C]."""

    def step(
        self, k: int, state: Tensor | None, tokens: Tensor, scales: Schedule | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scale k, codes [B,l] or vectors [B,l,C] -> the state, and what stands at the next scale, [B,l',C] or None."""

    def decode(self, tokens: Tensor, scales: Schedule | None = None) -> Tensor:
        """Codes or vectors -> images."""


class NextScaleNetwork(Protocol):
    """What this process needs of a network beside `forward(inputs, label, scales) -> logits [B,L,V]`."""

    num_classes: int

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""

    def start(self, label: Tensor, scales: Schedule | None = None) -> Any:
        """Begin sequences."""

    def step(self, progress: Any, inputs: Tensor | None) -> Tensor:
        """The logits [B,l,V] of the next scale."""


class NextScaleSampling(SamplingSettings):
    """Settings of next-scale sampling."""

    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance at the last scale of the image; 1 is none and costs half. VAR's "cfg" is one
    less: its 1.5 is 2.5 here."""
    guidance_ramp: bool = True
    """Guidance rises in even steps, from none at the first scale; otherwise all scales are guided alike."""
    ramp_scales: int | None = Field(None, ge=2)
    """The rise takes at most so many scales and goes on beyond its end (FlexVAR: 10). By default all."""
    top_k: PositiveInt | None = None
    """Draw among the so many likeliest codes (VAR: 900); 1 takes the likeliest. By default among all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Then among the fewest that make up this share of the probability (VAR: 0.96)."""
    more_smooth: bool = False
    """Mixtures of code vectors instead of drawn ones: smoother pictures, lower scores. Not for FlexVAR's tokenizer."""
    scales: tuple[Side, ...] | None = None
    """The schedule, sides or (height, width), coarse to fine; by default the tokenizer's. Only FlexVAR takes others."""
    trained_side: PositiveInt | None = None
    """Scales with longer sides take the likeliest codes, under full guidance (FlexVAR: 16). By default none."""
    drawn_sides: tuple[PositiveInt, ...] | None = None
    """Only scales with these sides are drawn, others take the likeliest codes (FlexVAR: 1, 2, 3, 4, 5, 6, 8, 10, 13,
    16, 23, 24, 32). By default all are."""
    forbidden: tuple[int, ...] = ()
    """Codes that are never drawn."""

    def idle(self) -> set[str]:
        unguided = {"guidance_ramp", "ramp_scales"} if self.guidance == 1 else set()
        return unguided | ({"top_p"} if self.top_k == 1 else set())


@dataclass(frozen=True)
class Edit:
    """What of given codes stays.

    Args:
        codes: int64 [B,L] of the same schedule; without a mask they may end with the scales that stay.
        mask: [h,w] or [B,h,w] for the last scale's grid, 1 where the codes stay; None: nowhere.
        from_scale: coarser scales stay whole.
    """

    codes: Tensor
    mask: Tensor | None = None
    from_scale: int = 0

    def kept(self, k: int, grids: tuple[Grid, ...]) -> Tensor:
        """Where scale k stays as it is: bool [B|1,l]."""
        height, width = grids[k]
        everything = torch.ones(1, height * width, dtype=torch.bool, device=self.codes.device)
        if k < self.from_scale:
            return everything
        if self.mask is None:
            return ~everything
        if height * width <= _COARSE:
            return everything
        mask = self.mask.float().view(-1, 1, *grids[-1])  # [B|1,1,h,w]
        return (F.interpolate(mask, (height, width), mode="bilinear") > 0.5).flatten(1)

    def check(self, grids: tuple[Grid, ...]) -> None:
        """Raises ConfigError: a mask or codes of the wrong size, or a scale that does not exist."""
        if not 0 <= self.from_scale <= len(grids):
            raise ConfigError(f"from_scale must lie in 0..{len(grids)}, got {self.from_scale}")
        if self.mask is not None and tuple(self.mask.shape[-2:]) != grids[-1]:
            raise ConfigError(f"a mask of {tuple(self.mask.shape[-2:])}, but the last scale is {grids[-1]}")
        lengths = lengths_of(grids if self.mask is not None else grids[: self.from_scale])
        if self.codes.shape[1] < sum(lengths) or self.codes.shape[1] > sum(lengths_of(grids)):
            raise ConfigError(f"{self.codes.shape[1]} codes an image, but the scales that stay have {sum(lengths)}")


class Drawn(NamedTuple):
    """One scale, as it was sampled."""

    logits: Tensor
    """float32 [B,l,V], guided, before the filters."""
    sampled: Tensor
    """Codes int64 [B,l], or with `more_smooth` vectors [B,l,C]; before an edit puts back what stays."""
    tokens: Tensor
    """The same after it."""
    state: Tensor
    """The tokenizer's maps after this scale."""


def streams(rng: SampleRng) -> Noise:
    """Noise from the samples' own streams."""
    return lambda k, length, vocab: exponential(rng, length, vocab)


def generate(
    network: NextScaleNetwork,
    tokenizer: MultiscaleTokenizer,
    label: Tensor,
    grids: tuple[Grid, ...],
    settings: NextScaleSampling,
    noise: Noise,
    edit: Edit | None = None,
) -> Iterator[Drawn]:
    """Sample scale by scale for label [B].

    Conditional and unconditional rows run as one batch, of the same codes.

    Raises:
        ConfigError: settings, network, tokenizer and edit do not fit each other.
    """
    codebook = codebook_of_sums(tokenizer) if settings.more_smooth else None
    if settings.more_smooth and codebook is None:
        raise ConfigError("sampling.more_smooth needs a tokenizer whose scales add up, such as VAR's; switch it off")
    if edit is not None:
        edit.check(grids)
    guided = settings.guidance != 1 and network.num_classes > 0
    labels = torch.cat([label, torch.full_like(label, network.null_label)]) if guided else label
    progress = network.start(labels, grids)
    state, inputs = None, None
    ends = [sum(lengths_of(grids[: k + 1])) for k in range(len(grids))]
    for k, grid in enumerate(grids):
        logits = network.step(progress, inputs).float()
        _check_choices(settings, logits.shape[-1])
        if settings.forbidden:
            logits[..., list(settings.forbidden)] = _FORBIDDEN
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = combine(conditional, unconditional, guidance_at(settings, k, grids), None)
        top_k = settings.top_k if _drawn(settings, grid) else 1
        if codebook is not None:
            ratio = k / max(len(grids) - 1, 1)
            allowed = filtered(logits, top_k, settings.top_p) * (1 + ratio)
            temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
            sampled = soft_choice(allowed, noise(k, *logits.shape[1:]), temperature) @ codebook  # [B,l,C]
        elif top_k == 1:
            sampled = greedy(logits)
        else:
            sampled = choose(filtered(logits, top_k, settings.top_p), noise(k, *logits.shape[1:]))
        tokens = sampled
        if edit is not None and (keep := edit.kept(k, grids)).any():
            own = edit.codes[:, ends[k] - sampled.shape[1] : ends[k]]
            tokens = torch.where(keep, own, sampled) if codebook is None else _mixed(keep, codebook[own], sampled)
        state, inputs = tokenizer.step(k, state, tokens, grids)
        yield Drawn(logits, sampled, tokens, state)


def guidance_at(settings: NextScaleSampling, k: int, grids: tuple[Grid, ...]) -> float:
    """The scale of guidance at scale k: 1 + (guidance - 1) k / (S - 1), where there is a ramp."""
    if not settings.guidance_ramp or (settings.trained_side is not None and max(grids[k]) > settings.trained_side):
        return settings.guidance
    last = min(len(grids), settings.ramp_scales or len(grids)) - 1
    return 1 + (settings.guidance - 1) * k / max(last, 1)


def codebook_of_sums(tokenizer: object) -> Tensor | None:
    """[V,C] of a tokenizer whose scales add up, so that mixtures of codes make sense; None for another."""
    quantizer: Any = getattr(tokenizer, "quantizer", None)
    return quantizer.embedding.weight if hasattr(quantizer, "sums") else None


def to_latent_mask(mask: Tensor, grid: Grid) -> Tensor:
    """A mask of pixels [...,R,R'] -> the cells [...,h,w] of which it covers more than half, as 0 and 1."""
    flat = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return (F.interpolate(flat, grid, mode="area") > 0.5).float().view(*mask.shape[:-2], *grid)


def schedule_of(settings: NextScaleSampling, scales: Schedule | None) -> tuple[Grid, ...]:
    """The scales to sample: those of the settings, or by default the tokenizer's."""
    chosen = scales if settings.scales is None else settings.scales
    if not chosen:
        raise ConfigError("process next_scale needs scales: the tokenizer has none; give sampling.scales")
    grids = grids_of(chosen)
    for before, after in pairwise(grids):
        if after[0] < before[0] or after[1] < before[1]:
            raise ConfigError(f"sampling.scales {list(grids)}: {after} after {before}; scales go from coarse to fine")
    return grids


def _drawn(settings: NextScaleSampling, grid: Grid) -> bool:
    """Whether a scale's codes are drawn, not the likeliest taken."""
    if settings.trained_side is not None and max(grid) > settings.trained_side:
        return False
    return settings.drawn_sides is None or set(grid) <= set(settings.drawn_sides)


def _check_choices(settings: NextScaleSampling, vocab: int) -> None:
    if settings.top_k is not None and settings.top_k > vocab:
        raise ConfigError(f"sampling.top_k must lie in 1..{vocab}, the number of codes: got {settings.top_k}")
    if any(not 0 <= code < vocab for code in settings.forbidden):
        raise ConfigError(f"sampling.forbidden: codes are 0..{vocab - 1}, got {list(settings.forbidden)}")


def _mixed(keep: Tensor, own: Tensor, sampled: Tensor) -> Tensor:
    return torch.where(keep.unsqueeze(-1), own, sampled)
