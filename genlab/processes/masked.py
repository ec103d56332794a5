"""Masked tokens: a network predicts the codes at masked positions from those at all others.

"MaskGIT: Masked Generative Image Transformer", Chang et al., CVPR 2022 (arXiv 2202.04200); with features of an earlier
step to be reused as in "ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis", Ni et al.,
NeurIPS 2024 (arXiv 2411.06959).

Letters: B batch, H W grid, L = H*W positions in raster order, N masked ones of a batch, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from genlab.core.contracts import EditKind, Event, LatentSpec, Network, OnStep, Process
from genlab.core.errors import ConfigError, DataError, NonFinite
from genlab.core.settings import Settings
from genlab.processes.mask_schedules import Points, ScheduleName, Table, beta, count_of, masked_at, schedule_of
from genlab.processes.masked_sampling import Generation, Given, MaskedSampling, Streams
from samplers.noise import SampleRng

Previous: TypeAlias = tuple[Tensor, Tensor]
"""Features [B,L,D] of the same images with more of them masked, and where they were, bool [B,L]."""
_NEEDS = "needs network enat or masked_transformer"


@dataclass(frozen=True)
class Masked(Process):
    """See MaskedConfig for each field.

    A network takes `(tokens int64 [B,L], label [B], previous)`, with `mask_token` where masked, to logits [N,V] of all
    masked positions, row after row. It says whether it `reuses` features, which `features(tokens, label)` gives.
    """

    takes_average: ClassVar[bool] = True
    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask"})

    schedule: ScheduleName | Literal["beta"] = "beta"
    beta: tuple[int, int] = (12, 3)
    table: Points | None = None
    label_smoothing: float = 0.1
    reuse: float = 0.5
    critic: float = 0.0

    def loss(
        self,
        network: Callable[..., Tensor],
        tokens: Tensor,
        label: Tensor,
        rng: SampleRng,
        average: Callable[..., Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The cross-entropy of the masked ones of the codes int64 [B,H,W], the mean over them.

        Every sample draws for itself how much of it is masked, where, and whether features are reused; the reference
        draws the first and the last once for a batch.

        Args:
            average: the network whose features are reused, by default `network` itself.

        Raises:
            DataError: a code is outside the vocabulary.
        """
        bare, codes = _bare(network), tokens.flatten(1)  # [B,L]
        _check_codes(codes, bare.vocab)
        length = codes.shape[1]
        count, uniform = count_of(self.ratio(rng), length), rng.uniform(length)  # [B], [B,L]
        masked = masked_at(uniform, count)
        previous = None
        if bare.reuses:
            reused, more = rng.uniform() < self.reuse, rng.uniform()  # [B]
            earlier = masked_at(uniform, count + ((length - count) * more).round().long())
            previous = _previous(average or bare, codes, label, earlier, reused, bare.mask_token)
        return self.loss_at(network, codes, label, masked, previous, rng.uniform(length) if self.critic else None)

    def loss_at(
        self,
        network: Callable[..., Tensor],
        codes: Tensor,
        label: Tensor,
        masked: Tensor,
        previous: Previous | None = None,
        u: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses [B] for codes [B,L] of which those `masked`, bool [B,L], are hidden.

        Args:
            u: uniform in [0,1), [B,L], by which the tokens are drawn that the critic judges; None: it does not learn.
        """
        logits = network(hide(codes, masked, _bare(network).mask_token), label, previous).float()  # [N,V]
        targets = codes[masked]
        errors = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")  # [N]
        with torch.no_grad():
            right = (logits.argmax(-1) == targets).float()
        losses = {"loss": _mean_of_rows(errors, masked), "accuracy": _mean_of_rows(right, masked)}
        if u is None:
            return losses
        guessed = codes.masked_scatter(masked, _drawn(logits.detach(), u[masked]))
        verdict = network(guessed, label, judge=True).float()  # [B,L]
        judged = F.binary_cross_entropy_with_logits(verdict, (~masked).float(), reduction="none").mean(1)
        return losses | {"loss": losses["loss"] + self.critic * judged, "critic": judged}

    def ratio(self, rng: SampleRng) -> Tensor:
        """[B] in [0,1]: how much of each sample is masked."""
        if self.schedule == "beta":
            return beta(rng, *self.beta)
        return schedule_of(self.schedule, self.table)(rng.uniform())

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: Any,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Codes int64 [B,H,W].

        Raises:
            ConfigError: settings that do not fit the network or its number of tokens.
            NonFinite: the network's logits are.
        """
        return _run(network, label, spec, rng, settings, None, on_step)

    @torch.no_grad()
    def edit(
        self,
        network: Network,
        label: Tensor,
        tokens: Tensor,
        keep: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: MaskedSampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Codes `tokens` int64 [B,H,W] with those outside `keep`, bool [H,W], made anew for `label` [B].

        The null label leaves it to the surroundings what appears. To keep nothing gives what `sample` gives. With
        `clamp` and fewer codes to make than steps there are as many steps.

        Raises:
            ConfigError: a mask of another size than the grid, or one that keeps everything; see `sample`.
            DataError: a code is outside the vocabulary.
            NonFinite: the network's logits are.
        """
        if tuple(keep.shape) != spec.grid:
            raise ConfigError(f"a mask of {tuple(keep.shape)} positions, but the grid of codes is {spec.grid}")
        if keep.all():
            raise ConfigError("the mask keeps every position: nothing is to be made anew")
        _check_codes(tokens, _bare(network).vocab)
        if settings.clamp:
            settings = settings.model_copy(update={"steps": min(settings.steps, int((~keep).sum()))})
        return _run(network, label, spec, rng, settings, Given(tokens.flatten(1), keep.flatten()), on_step)


def hide(codes: Tensor, masked: Tensor, mask_token: int) -> Tensor:
    """Codes [B,L] with the mask where `masked` is true."""
    return codes.masked_fill(masked, mask_token)


def _run(
    network: Network,
    label: Tensor,
    spec: LatentSpec,
    rng: SampleRng,
    settings: MaskedSampling,
    given: Given | None,
    on_step: OnStep | None,
) -> Tensor:
    generation = Generation(_bare(network), label, spec.grid, settings, Streams(rng), given)
    for step, state in enumerate(generation.run(), start=1):
        if on_step is not None:
            on_step(Event(step, settings.steps, state.guess.unflatten(1, spec.grid)))
    if not generation.finite.all():
        rows = (~generation.finite).nonzero().flatten().tolist()
        raise NonFinite(f"the network's logits are NaN or infinite for samples {rows} of the batch")
    return state.tokens.unflatten(1, spec.grid)


@torch.no_grad()
def _previous(
    network: Any, codes: Tensor, label: Tensor, masked: Tensor, reused: Tensor, mask_token: int
) -> Previous | None:
    """What `network` makes of the samples `reused`, bool [B], with more masked; the others have nothing to reuse."""
    rows = reused.nonzero().flatten()
    if len(rows) == 0:
        return None
    features = network.features(hide(codes, masked, mask_token)[rows], label[rows])  # [R,L,D]
    everywhere = features.new_zeros(len(codes), *features.shape[1:]).index_copy(0, rows, features)
    return everywhere, masked | ~reused[:, None]


def _drawn(logits: Tensor, u: Tensor) -> Tensor:
    """Codes int64 [N] from softmax(logits [N,V]), by u [N] uniform in [0,1)."""
    below = logits.softmax(-1).cumsum(-1) <= u[:, None]
    return below.sum(-1).clamp_max(logits.shape[-1] - 1)


def _mean_of_rows(values: Tensor, masked: Tensor) -> Tensor:
    """Values [N] of the masked positions, bool [B,L], row after row -> their mean in each row, [B]."""
    return values.new_zeros(masked.shape).masked_scatter(masked, values).sum(1) / masked.sum(1)


def _bare(network: Any) -> Any:
    """The network of masked codes, which a wrapper may hold (DDP). Raises ConfigError for another network."""
    while not hasattr(network, "mask_token"):
        if not hasattr(network, "module"):
            raise ConfigError(f"process masked {_NEEDS}: got {type(network).__name__}; choose another")
        network = network.module
    return network


def _check_codes(codes: Tensor, vocab: int) -> None:
    low, high = (int(end) for end in torch.aminmax(codes))
    if low < 0 or high >= vocab:
        raise DataError(f"codes {low}..{high}, but the vocabulary is 0..{vocab - 1}: made by another tokenizer?")


class MaskedConfig(Settings):
    """Prediction of masked tokens (MaskGIT, ENAT), for networks enat and masked_transformer."""

    name: Literal["masked"] = "masked"
    schedule: ScheduleName | Literal["beta"] = "beta"
    """Where the masked share of a training image comes from: a Beta distribution (ENAT), or a schedule at a uniform
    progress (MaskGIT: cosine). At least one token is masked, and one is not."""
    beta: tuple[PositiveInt, PositiveInt] = (12, 3)
    """Its two parameters; the mean is 12 / (12 + 3) of the tokens."""
    table: Table | None = None
    """Of schedule learned: (progress, share), or the file that holds them, as JSON or as two numbers a line."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target probability that is spread over all codes."""
    reuse: float = Field(0.5, ge=0, le=1)
    """Share of the images for which a network that reuses features is given those that its average makes of an earlier
    step; others have no earlier step."""

    critic: float = Field(0.0, ge=0)
    """Weight of the loss of a critic that tells given tokens from guessed ones (Lezama et al. 2022), for a network that
    has one; sampling.order critic then reveals what it believes first."""

    latents: ClassVar[frozenset[str]] = frozenset({"codes"})
    """The kinds of LatentSpec that it works on."""
    Sampling: ClassVar[type[MaskedSampling]] = MaskedSampling

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        if self.schedule != "beta" or self.table is not None:
            schedule_of(self.schedule, self.table)
        return self

    def check(self, network: object) -> None:
        """Raises ValueError for a network of other tokens, or one that reuses features and is not trained to."""
        if not hasattr(network, "mask_token"):
            raise ValueError(f"process masked {_NEEDS}, got {type(network).__name__}")
        if self.critic and getattr(network, "critic", None) is None:
            raise ValueError(
                "process.critic needs network masked_transformer with critic: true; set it, or leave it out"
            )
        if getattr(network, "critic", None) is not None and not self.critic:
            raise ValueError("network.critic would not be trained: set process.critic to its weight, such as 1")
        if getattr(network, "reuses", False) and self.reuse == 0:
            raise ValueError(
                f"{type(network).__name__} reuses features when it samples: process.reuse must be above 0, or take "
                "network masked_transformer"
            )

    def build(self) -> Masked:
        """The process."""
        return Masked(**self.model_dump(exclude={"name"}))
