"""Masked residual codes: a network sees the sum of the visible codes and models that of the masked ones.

"Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", Kim et al., ICML 2025 (arXiv
2412.10208). Of the codes of a position the finest are masked, as many as a draw without replacement takes; the loss is
the negative log-likelihood of the sum of their vectors under a mixture of Gaussians, or an upper bound of it.

Letters: B batch, h w grid, L = h w positions, D depths, V codes of a depth, C channels of a code vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import torch
from pydantic import PositiveFloat
from torch import Tensor

from genlab.core.contracts import EditKind, Event, LatentSpec, Network, OnStep, Process, Tokenizer
from genlab.core.errors import ConfigError, DataError, GenlabError, NonFinite
from genlab.core.settings import Settings
from genlab.nn.mixture import MixtureTerms, mixture_terms
from genlab.processes import residual_sampling as sampling
from genlab.processes.residual_sampling import Latents, Quantizer, ResidualSampling, State
from samplers import residual_fill
from samplers.noise import SampleRng
from samplers.residual_fill import Schedule

MogLoss: TypeAlias = Literal["nll", "bound", "bound_detached"]
Unit: TypeAlias = Literal["whole", "count"]
_PROBES = 1024  # code vectors whose distances to their neighbours are measured


class Masking(NamedTuple):
    """Codes, partly masked."""

    masked: Tensor
    """int64 [B,L]: the last so many codes of a position are masked."""
    visible: Tensor
    """[B,L,C], sums of the vectors of the others."""
    target: Tensor
    """[B,L,C], sums of the masked vectors."""


def masking(vectors: Tensor, masked: Tensor) -> Masking:
    """Vectors [B,L,D,C] of all codes, of which the last `masked` [B,L] of each position are masked."""
    seen = residual_fill.visible(masked, vectors.shape[-2]).unsqueeze(-1)  # [B,L,D,1]
    return Masking(masked, (vectors * seen).sum(-2), (vectors * ~seen).sum(-2))


@dataclass(frozen=True)
class ResidualMasked(Process):
    """See ResidualMaskedConfig for each field. Works on a tokenizer, which `over` gives it."""

    edits: ClassVar[frozenset[EditKind]] = frozenset({"mask"})

    schedule: Schedule = "circle"
    mog_loss: MogLoss = "bound_detached"
    scale: float | None = None
    scale_floor: float | None = None
    unit: Unit = "whole"
    units: tuple[float, ...] | None = None
    tokenizer: Tokenizer | None = None

    def over(self, tokenizer: Tokenizer) -> ResidualMasked:
        """The process on the codes of `tokenizer`, with what its codebooks say where scale and floor are left open.

        Raises:
            ConfigError: its codes are not residual, or one stands for several positions' vectors.
        """
        spec = tokenizer.spec
        if spec.kind != "residual":
            raise ConfigError(
                f"process residual_masked works on residual codes: got {spec.kind} ones from the tokenizer"
            )
        quantizer = _quantizer(tokenizer)
        if quantizer.depth != spec.depth:
            raise ConfigError(f"the tokenizer says {spec.depth} codes a position, its quantizer has {quantizer.depth}")
        tables = [quantizer.book(depth).table() for depth in range(quantizer.depth)]
        if tables[0].shape[1] != spec.channels:
            raise ConfigError(
                f"process residual_masked needs codes of single positions: got vectors of {tables[0].shape[1]} for "
                f"{spec.channels} channels; train the tokenizer with quantizer.block [1, 1]"
            )
        finer = accumulate(float(table.var(0, correction=0).mean()) for table in reversed(tables))
        spread = [math.sqrt(variance) for variance in finer]  # of the sum of the last k + 1 vectors
        scale = self.scale or 1 / spread[-1]
        floor = self.scale_floor or scale * _spacing(tables[-1]) / (2 * math.sqrt(spec.channels))
        return replace(
            self,
            tokenizer=tokenizer,
            scale=scale,
            scale_floor=max(floor, 1e-30),
            units=tuple(scale * each for each in (spread[0], *spread)) if self.unit == "count" else None,
        )

    def loss(self, network: Callable[..., Any], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """The loss of codes int64 [B,h,w,D], the mean over the positions that are masked in part; its parts are logged
        for each channel.

        Raises:
            DataError: codes of another depth, or outside the vocabulary.
        """
        latents, floor, spec = self._bound()
        if tokens.shape[-1] != spec.depth:
            raise DataError(f"{tokens.shape[-1]} codes a position, the tokenizer makes {spec.depth}: of another one?")
        with torch.no_grad():
            vectors = latents.vectors(tokens.flatten(1, 2))  # [B,L,D,C]
            masked = masking(vectors, self.draw(rng, vectors.shape[1], vectors.shape[2]))
        log_weights, log_densities = network(
            masked.visible, masked.masked, label, masked.target, latents.spread(tokens.device)[masked.masked], floor
        )
        terms = self.terms(log_weights, log_densities)
        hit = masked.masked > 0
        share = hit / hit.sum(1, keepdim=True)  # [B,L]; at least one position is masked
        means = {name: (part * share).sum(1) for name, part in terms._asdict().items()}
        chosen = means["nll"] if self.mog_loss == "nll" else means["classification"] + means["regression"]
        return {"loss": chosen} | {name: mean.detach() / spec.channels for name, mean in means.items()}

    def draw(self, rng: SampleRng, positions: int, depth: int) -> Tensor:
        """Numbers of masked codes int64 [B,L] for training: multivariate hypergeometric, at least one in all."""
        n = residual_fill.masked_cells(self.schedule, rng.uniform(), positions * depth).clamp_min(1)
        return residual_fill.draw_masked(rng.uniform(positions, depth), n)

    def terms(self, log_weights: Tensor, log_densities: Tensor) -> MixtureTerms:
        """The parts of the loss at each position."""
        return mixture_terms(log_weights, log_densities, detached=self.mog_loss == "bound_detached")

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
        """Codes int64 [B,h,w,D]. `on_step` sees the visible codes and those that a step's vectors promise.

        Raises:
            ConfigError: settings or a network that do not fit the tokenizer.
            NonFinite: the network's mixture is.
        """
        latents, _, spec = self._bound()
        state = sampling.blank(len(label), math.prod(spec.grid), spec.channels, latents.quantizer.depth, label.device)
        return self._run(network, label, state, _cells(spec), rng, settings, on_step)

    @torch.no_grad()
    def edit(
        self,
        network: Network,
        label: Tensor,
        tokens: Tensor,
        keep: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: Any,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """`tokens` int64 [B,h,w,D] with all codes made anew but those of the positions in `keep`, bool [h,w].

        With fewer codes to make than steps there are as many steps. Keeping nothing gives what `sample` gives.

        Raises:
            GenlabError: a mask or codes of another size.
            DataError: a code is outside the vocabulary.
        """
        latents, _, spec = self._bound()
        wanted = (*spec.grid, latents.quantizer.depth)
        if tuple(keep.shape) != spec.grid or tuple(tokens.shape[1:]) != wanted:
            raise GenlabError(
                f"edit: codes of {wanted} and a mask of {spec.grid} are needed, got {tuple(tokens.shape[1:])} and "
                f"{tuple(keep.shape)}"
            )
        keep = keep.flatten().to(label.device)
        cells = int((~keep).sum()) * latents.quantizer.depth
        if cells == 0:
            return tokens
        settings = settings.model_copy(update={"steps": min(settings.steps, cells)})
        state = sampling.given(tokens.flatten(1, 2), keep, latents)
        return self._run(network, label, state, cells, rng, settings, on_step)

    def _run(
        self,
        network: Network,
        label: Tensor,
        state: State,
        cells: int,
        rng: SampleRng,
        settings: ResidualSampling,
        on_step: OnStep | None,
    ) -> Tensor:
        latents, floor, spec = self._bound()
        able = _able(network, spec)
        if settings.steps > cells and not settings.literal_steps:
            raise ConfigError(
                f"sampling.steps={settings.steps}, but an image has {cells} codes and a step reveals one at least; "
                f"take {cells} or fewer"
            )
        guided = settings.guidance != 1 and network.num_classes > 0
        labels = torch.cat([label, torch.full_like(label, network.null_label)]) if guided else label
        counts = residual_fill.plan(settings.schedule, cells, settings.steps, settings.literal_steps)
        noise = sampling.streams(rng, state.codes.shape[1], state.codes.shape[2], spec.channels)
        broken = torch.zeros(len(label), dtype=torch.bool, device=label.device)
        decoder = able.decoder(labels, floor)
        rounds = sampling.generate(decoder, latents, state, counts, settings, noise, guided)
        for step, done in enumerate(rounds, start=1):
            state = done.after
            broken |= ~done.latent.flatten(1).isfinite().all(1)
            if on_step is not None:
                codes = sampling.guess(done.before, done.latent, latents)
                on_step(Event(step, settings.steps, codes.unflatten(1, spec.grid)))
        if broken.any():
            rows = broken.nonzero().flatten().tolist()
            raise NonFinite(f"the network's mixture is NaN or infinite for samples {rows} of the batch")
        return state.codes.unflatten(1, spec.grid)

    def _bound(self) -> tuple[Latents, float, LatentSpec]:
        """The tokenizer's vectors, the least log scale of a mixture, and the spec."""
        if self.tokenizer is None or self.scale is None or self.scale_floor is None:
            raise ConfigError("process residual_masked has no tokenizer yet; bind it with process.over(tokenizer)")
        return (
            Latents(_quantizer(self.tokenizer), self.scale, self.units),
            math.log(self.scale_floor),
            self.tokenizer.spec,
        )


def _quantizer(tokenizer: Any) -> Quantizer:
    """Raises ConfigError for a tokenizer without a residual quantiser of its own."""
    quantizer = getattr(tokenizer, "quantizer", None)
    if not (hasattr(quantizer, "book") and hasattr(quantizer, "embed")):
        raise ConfigError(
            f"process residual_masked needs a tokenizer with a residual quantizer: got {type(tokenizer).__name__}"
        )
    return cast(Quantizer, quantizer)


def _cells(spec: LatentSpec) -> int:
    return math.prod(spec.grid) * (spec.depth or 0)


def _able(network: Any, spec: LatentSpec) -> Any:
    """The network, if it models mixtures for codes of this depth. Raises ConfigError."""
    if not hasattr(network, "code_depth"):
        raise ConfigError(f"process residual_masked needs network resgen: got {type(network).__name__}; choose it")
    if network.code_depth != spec.depth:
        raise ConfigError(
            f"the network was made for {network.code_depth} codes a position, the tokenizer has {spec.depth}; "
            "take the tokenizer that it was trained with"
        )
    return network


def _spacing(table: Tensor) -> float:
    """Root mean square distance from code vectors [V,C] to their nearest neighbours; of large tables a part's."""
    table = table.float()
    probes = table[:: -(-len(table) // _PROBES)]
    distances = torch.cdist(probes, table)
    return float(distances.masked_fill(distances == 0, torch.inf).amin(1).nan_to_num(posinf=0.0).square().mean().sqrt())


class ResidualMaskedConfig(Settings):
    """Masked residual codes (ResGen), for network resgen."""

    name: Literal["residual_masked"] = "residual_masked"
    schedule: Schedule = "circle"
    """How the share of masked codes in training depends on a uniform number: circle, cosine, arccos or linear."""
    mog_loss: MogLoss = "bound_detached"
    """nll: the mixture's negative log-likelihood; bound: a bound of it under which no component dies, classification
    plus regression; bound_detached: the same, with the classification teaching the weights alone."""
    scale: PositiveFloat | None = None
    """Times which code vectors are seen by the network. By default what makes the variance of their sums 1 where all
    codes are equally likely."""
    scale_floor: PositiveFloat | None = None
    """Least scale of the mixture, where the last codes are so few points that it would fall to 0. By default half the
    distance between neighbouring codes of the last depth, as the standard deviation of a channel."""
    unit: Unit = "whole"
    """What the mixture measures its targets in: the deviation of whole latents, one for all, or that of sums of as many
    codes as are masked, count by count, which short runs learn sooner (our addition, not the paper's)."""

    latents: ClassVar[frozenset[str]] = frozenset({"residual"})
    """The kinds of LatentSpec that it works on."""
    Sampling: ClassVar[type[ResidualSampling]] = ResidualSampling

    def check(self, network: object) -> None:
        """Raises ValueError for a network without a mixture."""
        if not hasattr(network, "code_depth"):
            raise ValueError(f"process residual_masked needs network resgen, got {type(network).__name__}")

    def build(self) -> ResidualMasked:
        """The process."""
        return ResidualMasked(**self.model_dump(exclude={"name"}))
