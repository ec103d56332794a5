"""Next-scale prediction: a network predicts the codes of each scale from those of all coarser ones, all at once.

"Visual Autoregressive Modeling", Tian et al., NeurIPS 2024 (arXiv 2404.02905); with random schedules as in "FlexVAR",
Jiao et al., NeurIPS 2025 (arXiv 2502.20313).

Letters: B batch, S scales, l a scale's positions, L positions in all, V vocabulary, C channels of a code vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from genlab.core.contracts import EditKind, Event, LatentSpec, Network, OnStep, Process, Tokenizer
from genlab.core.errors import ConfigError, DataError, NonFinite
from genlab.core.settings import Settings
from genlab.nn.scales import Grid, grids_of, lengths_of
from genlab.processes.next_scale_sampling import (
    Edit,
    MultiscaleTokenizer,
    NextScaleNetwork,
    NextScaleSampling,
    codebook_of_sums,
    generate,
    schedule_of,
    streams,
    to_latent_mask,
)
from samplers.noise import SampleRng

_SCHEDULE = 0x5CA1E  # the stream of random numbers that draw schedules
_DEPTH = 0xDEE9  # and random depths
_USUAL = {(side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)}


@dataclass(frozen=True)
class NextScale(Process):
    """See NextScaleConfig for each field. Works on a tokenizer, which `over` gives it."""

    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask", "parts"})

    label_smoothing: float = 0.0
    schedules: Literal["fixed", "random"] = "fixed"
    longest: int = 680
    tokenizer: MultiscaleTokenizer | None = None

    def over(self, tokenizer: Tokenizer) -> NextScale:
        """The process on the codes of `tokenizer`. Raises ConfigError if their scales do not fit."""
        if tokenizer.spec.kind != "multiscale":
            raise ConfigError(f"process next_scale works on multiscale codes: got {tokenizer.spec.kind} ones")
        if self.schedules == "random" and codebook_of_sums(tokenizer) is not None:
            raise ConfigError(
                "process.schedules=random leaves scales out, but this tokenizer's scales add up; use fixed"
            )
        return replace(self, tokenizer=cast(MultiscaleTokenizer, tokenizer))

    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """Cross-entropy of the codes int64 [B,L], the mean over positions; "last" is that of the last scale alone.

        Raises:
            DataError: a code is outside the vocabulary.
        """
        tokenizer, spec = self._bound()
        grids = grids_of(spec.scales or ())
        if tokens.shape[1] != sum(lengths_of(grids)):
            raise DataError(f"{tokens.shape[1]} codes an image, but scales {list(grids)} have {sum(lengths_of(grids))}")
        if self.schedules == "random":
            chosen = self._draw(grids, rng.rows(slice(0, 1)).fork(_SCHEDULE))
            parts = tokens.split(lengths_of(grids), dim=1)
            tokens, grids = torch.cat([parts[k] for k in chosen], dim=1), tuple(grids[k] for k in chosen)
        with torch.no_grad():
            inputs = tokenizer.inputs(tokens, grids)
        logits = network(inputs, label, grids, rng.fork(_DEPTH).uniform).float()
        _check_codes(tokens, logits.shape[-1])
        errors = F.cross_entropy(logits.mT, tokens, label_smoothing=self.label_smoothing, reduction="none")  # [B,L]
        with torch.no_grad():
            right = (logits.argmax(-1) == tokens).float()  # [B,L]
        last = lengths_of(grids)[-1]
        return {
            "loss": errors.mean(1),
            "last": errors[:, -last:].detach().mean(1),
            "accuracy": right.mean(1),
            "last_accuracy": right[:, -last:].mean(1),
        }

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
        """Codes int64 [B,L], or with `more_smooth` vectors [B,L,C] in their place; a step is a scale.

        Raises:
            ConfigError: settings that fit neither network nor tokenizer.
            NonFinite: the network's logits are.
        """
        return self._run(network, label, spec, rng, settings, None, on_step)

    @torch.no_grad()
    def edit(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: NextScaleSampling,
        edit: Edit,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """As `sample`, but what the edit keeps stays: in- and out-painting, or all scales after some.

        The null label in `label` leaves it to the surroundings what is painted.

        Raises:
            ConfigError: a mask of the wrong size, codes of another schedule, a scale that does not exist.
            DataError: a code is outside the vocabulary.
        """
        if spec.vocab is not None:
            _check_codes(edit.codes, spec.vocab)
        return self._run(network, label, spec, rng, settings, edit, on_step)

    @torch.no_grad()
    def edit_images(
        self,
        network: Network,
        label: Tensor,
        images: Tensor,
        mask: Tensor | None,
        rng: SampleRng,
        settings: NextScaleSampling,
        from_scale: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images [B,3,R,R'] in [-1,1], or one [1,3,R,R'] for all labels, after `edit`, in [-1,1].

        Args:
            mask: [R,R'] or [B,R,R'], 1 where the images stay; None: nowhere.
            from_scale: coarser scales stay whole.

        Raises:
            ConfigError: a mask of another size than the images, or images that do not fit the tokenizer.
        """
        tokenizer, spec = self._bound()
        if mask is not None and mask.shape[-2:] != images.shape[-2:]:
            raise ConfigError(f"a mask of {tuple(mask.shape[-2:])} pixels for images of {tuple(images.shape[-2:])}")
        grids = schedule_of(settings, spec.scales)
        codes = tokenizer.encode(images, grids).expand(len(label), -1)
        edit = Edit(codes, None if mask is None else to_latent_mask(mask, grids[-1]), from_scale)
        tokens = self.edit(network, label, spec, rng, settings, edit, on_step)
        return tokenizer.decode(tokens, grids).clamp(-1, 1)

    def decode(self, tokenizer: Tokenizer, tokens: Tensor, settings: Any) -> Tensor:
        """Images [B,3,R,R'] of what `sample` gave under `settings`, whose schedule may not be the tokenizer's."""
        if settings.scales is None:
            return tokenizer.decode(tokens)
        return cast(MultiscaleTokenizer, tokenizer).decode(tokens, settings.scales)

    def _run(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: NextScaleSampling,
        edit: Edit | None,
        on_step: OnStep | None,
    ) -> Tensor:
        if not hasattr(network, "start"):
            raise ConfigError(
                f"process next_scale needs network var, flexvar or mvar: got {type(network).__name__}; choose another"
            )
        tokenizer, _ = self._bound()
        grids = schedule_of(settings, spec.scales)
        parts: list[Tensor] = []
        broken = torch.zeros(len(label), dtype=torch.bool, device=label.device)
        able = cast(NextScaleNetwork, network)
        for drawn in generate(able, tokenizer, label, grids, settings, streams(rng), edit):
            parts.append(drawn.tokens)
            broken |= ~drawn.logits.flatten(1).isfinite().all(1)
            if on_step is not None:
                on_step(Event(len(parts), len(grids), torch.cat(parts, dim=1)))
        if broken.any():
            rows = broken.nonzero().flatten().tolist()
            raise NonFinite(f"the network's logits are NaN or infinite for samples {rows} of the batch")
        return torch.cat(parts, dim=1)

    def _bound(self) -> tuple[MultiscaleTokenizer, LatentSpec]:
        if self.tokenizer is None:
            raise ConfigError("process next_scale has no tokenizer yet; bind it with process.over(tokenizer)")
        return self.tokenizer, cast(Tokenizer, self.tokenizer).spec

    def _draw(self, grids: tuple[Grid, ...], rng: SampleRng) -> list[int]:
        """Which of the scales a training step uses, coarse to fine, with FlexVAR's probabilities.

        One step in twenty the usual ones, if they are there. Otherwise the first two and the last, five of those up to
        5/8 of the last one's side and two of the others. Then at times up to four of them are left out, and as many of
        the last four as it takes to be no longer than `longest`.
        """
        last = len(grids) - 1
        order = rng.uniform(len(grids))[0].argsort().tolist()
        border = 0.625 * grids[-1][0]
        low = [k for k in order if 2 <= k < last and grids[k][0] <= border][:5]
        high = [k for k in order if 2 <= k < last and grids[k][0] > border][:2]
        chosen = sorted({*range(min(2, last)), *low, *high, last})
        usual, left_out, *places = rng.uniform(2 + 4 + len(grids))[0].tolist()
        if usual < 0.05 and set(grids) >= _USUAL:
            chosen = [k for k, grid in enumerate(grids) if grid in _USUAL]
        for least in (0.9, 0.95, 0.98, 0.99):
            if left_out > least and len(chosen) > 3:
                chosen.pop(2 + int(places.pop() * (len(chosen) - 3)))
        while sum(lengths_of([grids[k] for k in chosen])) > self.longest and len(chosen) > 1:
            last_few = min(4, len(chosen) - 1)
            chosen.pop(len(chosen) - 1 - int(places.pop() * last_few))
        return chosen


def _check_codes(codes: Tensor, vocab: int) -> None:
    low, high = (int(end) for end in torch.aminmax(codes))
    if low < 0 or high >= vocab:
        raise DataError(f"codes {low}..{high}, but the vocabulary is 0..{vocab - 1}: made by another tokenizer?")


class NextScaleConfig(Settings):
    """Next-scale prediction, for networks var, flexvar and mvar."""

    name: Literal["next_scale"] = "next_scale"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target probability that is spread over all codes."""
    schedules: Literal["fixed", "random"] = "fixed"
    """fixed: all scales of the tokenizer; random: for each forward pass some of them, as FlexVAR was trained. Needs a
    tokenizer whose scales do not build on each other (FlexVAR's)."""
    longest: PositiveInt = 680
    """Positions that a random schedule may have."""

    latents: ClassVar[frozenset[str]] = frozenset({"multiscale"})
    """The kinds of LatentSpec that it works on."""
    Sampling: ClassVar[type[NextScaleSampling]] = NextScaleSampling

    def build(self) -> NextScale:
        """The process."""
        return NextScale(**self.model_dump(exclude={"name"}))
