"""Residual quantisation over scales (VAR, Tian et al. 2024, section 3.2 and algorithms 1 and 2).

A feature map is the sum of contributions of ever finer scales. Scale k codes what the coarser ones left over, averaged
down to its grid; its code vectors are resized to the full grid and refined by a convolution phi. All scales share one
codebook. L = sum of h_k w_k; the codes of all scales lie one after another, coarse to fine, each row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.scales import Grid, Schedule, grids_of
from genlab.tokenization.quantizers.codebook import nearest, squared_error, straight_through
from genlab.tokenization.quantizers.codes import check
from genlab.tokenization.quantizers.contract import Quantized, Quantizer
from samplers.noise import SampleRng

_REVIVAL = 0x5EED  # the stream of random numbers that choose replacements of dead codes
_USED = 0.08  # a code counts as used if it is hit this often, as a share of the mean


def grid_of(maps: Tensor) -> Grid:
    """(h, w) of maps [B,C,h,w]."""
    return maps.shape[-2], maps.shape[-1]


def length(scales: Schedule) -> int:
    """L, the codes of an image."""
    return sum(height * width for height, width in grids_of(scales))


def split(tokens: Tensor, scales: Schedule) -> list[Tensor]:
    """[B,L,...] -> one [B,h w,...] for each scale. The tokens may end after any scale.

    Raises:
        ConfigError: their number fits no scale's end.
    """
    parts, start = [], 0
    for height, width in grids_of(scales):
        if start == tokens.shape[1]:
            break
        parts.append(tokens[:, start : start + height * width])
        start += height * width
    if start != tokens.shape[1]:
        raise ConfigError(f"{tokens.shape[1]} codes an image, but scales {list(scales)} end elsewhere (all: {start})")
    return parts


def as_map(sequence: Tensor, grid: Grid) -> Tensor:
    """[B,h w,C] -> [B,C,h,w]."""
    return sequence.transpose(1, 2).unflatten(2, grid)


def as_sequence(maps: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,h w,C]."""
    return maps.flatten(2).transpose(1, 2)


def shrink(maps: Tensor, grid: Grid) -> Tensor:
    """Area averages [B,C,h,w]."""
    return maps if grid_of(maps) == grid else F.interpolate(maps, grid, mode="area")


def enlarge(maps: Tensor, grid: Grid) -> Tensor:
    """Bicubic interpolation to [B,C,h,w]."""
    return maps if grid_of(maps) == grid else F.interpolate(maps, grid, mode="bicubic")


def phi_of_scale(scales: int, phis: int) -> list[int]:
    """Which of `phis` convolutions serves each scale: the nearest of evenly spaced places, the first of equals.

    The published places are other ones for four convolutions; two of its ten scales are ties that only arithmetic in
    double precision decides as there.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    places = np.linspace(margin, 1 - margin, phis)
    return [int(np.argmin(np.abs(places - scale / max(scales - 1, 1)))) for scale in range(scales)]


class Scanned(NamedTuple):
    """One scale of an encoding."""

    codes: Tensor
    """int64 [B,h w]."""
    contribution: Tensor
    """[B,C,H,W], with gradients to codebook and phi."""
    residual: Tensor
    """[B,h w,C]: the vectors that were looked up."""


class MultiscaleQuantizer(Quantizer):
    """Feature maps [B,C,H,W] <-> codes [B,L] of several scales.

    Every method takes a schedule; by default it is the quantiser's own. The last scale is that of the feature maps.
    """

    kind = "multiscale"

    hits: Tensor
    """[K,V], the average number of hits in a training step."""
    updates: Tensor
    """int64 [], the training steps that are in it."""
    ages_by_scale: bool = False
    """Average as the published code does, whose count of updates grows with every scale instead of every step."""

    def __init__(self, config: MultiscaleQuantization, channels: int, scales: Schedule):
        super().__init__()
        self.config = config
        self.vocab = config.vocab
        self.channels = channels
        self.scales = grids_of(scales)
        self.embedding = nn.Embedding(config.vocab, channels)
        nn.init.uniform_(self.embedding.weight, -(channels**-0.5) / 36, channels**-0.5 / 36)  # as the authors' vaex
        count = (config.phis or len(self.scales)) if config.phi_strength else 0
        self.phis = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))
        self.register_buffer("hits", torch.zeros(len(self.scales), config.vocab))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, rng: SampleRng | None = None) -> Quantized:
        """The training pass (VAR's eq. 5): the sums after all scales come near to z, and z to them.

        Args:
            rng: the samples' streams, which scale dropout needs.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            scanned = list(self._scan(z, self.scales))
            total, sums = torch.zeros_like(z), []
            for scale in scanned:
                total = total + scale.contribution
                sums.append(total)
            errors = torch.stack([squared_error(after, z.detach()) for after in sums], dim=1)  # [B,K]
            terms = {
                "commitment": torch.stack([squared_error(after.detach(), z) for after in sums]).mean(0),
                "codebook": errors.mean(1),
                **{f"scale{k}": error for k, error in enumerate(errors.detach().unbind(1))},
            }
            loss = self.config.commitment * terms["commitment"] + terms["codebook"]
            seen = self._drop_scales(sums, rng) if self.training and self.config.scale_dropout else total
            if self.training:
                self._count(scanned)
            codes = torch.cat([scale.codes for scale in scanned], dim=1)
            return Quantized(straight_through(z, seen), codes, loss, terms)

    @torch.no_grad()
    def encode(self, z: Tensor, scales: Schedule | None = None) -> Tensor:
        """Feature maps [B,C,H,W] -> codes int64 [B,L].

        Raises:
            ConfigError: the last scale is not that of the maps.
        """
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([scale.codes for scale in self._scan(z.float(), self._grids(scales))], dim=1)

    def decode(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        """Codes of all or of the first scales -> [B,C,H,W], the sum of their contributions."""
        total = None
        for total in self.sums(codes, scales):  # noqa: B007 (the last one is wanted)
            pass
        assert total is not None
        return total

    def sums(self, tokens: Tensor, scales: Schedule | None = None) -> Iterator[Tensor]:
        """The sum [B,C,H,W] after each of the scales that the tokens have.

        Args:
            tokens: codes int64 [B,L], or vectors in their place [B,L,C]; they may end after any scale.

        Raises:
            ConfigError: they end within one.
            DataError: a code is outside 0..V-1.
        """
        total = None
        tokens = tokens if tokens.is_floating_point() else check(tokens, self.vocab)
        for k, part in enumerate(split(tokens, self._grids(scales))):
            total, _ = self.step(k, total, part, scales)
            yield total

    def inputs(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        """What a next-scale generator is given in training, [B,L-l_0,C]: for each scale but the first, the sum of the
        coarser ones averaged down to its grid. Codes may lack the last scale, which is not needed."""
        grids = self._grids(scales)
        coarse = codes[:, : length(grids[:-1])]
        none = self.embedding.weight.new_empty(len(codes), 0, self.channels)
        following = (as_sequence(shrink(s, grid)) for s, grid in zip(self.sums(coarse, grids), grids[1:]))
        return torch.cat([none, *following], dim=1)

    def step(
        self, k: int, total: Tensor | None, tokens: Tensor, scales: Schedule | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Add a scale (VAR's algorithm 2).

        Args:
            total: the sum so far [B,C,H,W]; None before the first scale.
            tokens: codes int64 [B,h_k w_k] of scale k, or vectors in their place [B,h_k w_k,C].

        Returns:
            The sum with scale k, and the generator's input at the next scale, [B,h w,C]; None after the last one.
        """
        grids = self._grids(scales)
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = tokens.float() if tokens.is_floating_point() else self.embedding(tokens)
            h = self._contribution(k, as_map(vectors, grids[k]), grids)
            total = h if total is None else total + h
            return total, as_sequence(shrink(total, grids[k + 1])) if k + 1 < len(grids) else None

    def refine(self, k: int, maps: Tensor, scales: int) -> Tensor:
        """phi of scale k of `scales`, on maps [B,C,H,W]."""
        if not self.phis:
            return maps
        own = self.config.phis == 0
        if own and scales != len(self.phis):
            raise ConfigError(f"{scales} scales, but this quantiser has a convolution for each of its {len(self.phis)}")
        phi = self.phis[k if own else phi_of_scale(scales, len(self.phis))[k]]
        return torch.lerp(maps, phi(maps), self.config.phi_strength)

    def usage(self, margin: float | None = None) -> Tensor:
        """Share of the codes in use on each scale, in percent [K], over about the last hundred training steps.

        Args:
            margin: hits a step from which a code is in use; default: 8 % of the mean on its scale.
        """
        least = _USED * self.hits.mean(1, keepdim=True) if margin is None else margin
        return 100.0 * ((self.hits >= least) & (self.hits > 0)).float().mean(1)

    def _grids(self, scales: Schedule | None) -> tuple[Grid, ...]:
        return self.scales if scales is None else grids_of(scales)

    def _scan(self, z: Tensor, grids: Sequence[Grid]) -> Iterator[Scanned]:
        """Encode, scale by scale. The residual has no gradients."""
        if grid_of(z) != grids[-1]:
            raise ConfigError(f"feature maps of {grid_of(z)}, but the last scale is {grids[-1]}")
        rest = z.detach()
        table = self.embedding.weight.detach()
        for k, grid in enumerate(grids):
            residual = as_sequence(shrink(rest, grid))
            codes = self._look_up(residual, table)
            h = self._contribution(k, as_map(self.embedding(codes), grid), grids)
            rest = rest - h.detach()
            yield Scanned(codes, h, residual)

    def _look_up(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Codes [B,l] of vectors [B,l,C]."""
        if self.config.cosine:
            vectors, table = F.normalize(vectors, dim=-1), F.normalize(table, dim=-1)
        return nearest(vectors.flatten(0, 1), table).view(vectors.shape[:2])

    def _contribution(self, k: int, maps: Tensor, grids: Sequence[Grid]) -> Tensor:
        return self.refine(k, enlarge(maps, grids[-1]), len(grids))

    def _drop_scales(self, sums: Sequence[Tensor], rng: SampleRng | None) -> Tensor:
        """What the decoder sees: of some samples only the first scales, as many as chance decides."""
        assert rng is not None, "scale dropout needs the samples' streams"
        if len(sums) == 1:
            return sums[0]
        dropped = rng.uniform() < self.config.scale_dropout  # [B]
        last = torch.where(dropped, rng.integers(len(sums) - 1), len(sums) - 1)  # [B]
        return torch.stack(list(sums), dim=1)[torch.arange(len(last), device=last.device), last]

    @torch.no_grad()
    def _count(self, scanned: Sequence[Scanned]) -> None:
        """Average the hits of each code on each scale, over ranks and steps, and replace codes that are dead."""
        hits = torch.stack([torch.bincount(s.codes.flatten(), minlength=self.vocab) for s in scanned]).float()  # [K,V]
        if dist.is_initialized():
            dist.all_reduce(hits)
        age = self.updates
        if self.ages_by_scale:
            age = age * len(hits) + torch.arange(len(hits), device=hits.device).unsqueeze(1)  # [K,1]
        keep = torch.where(age == 0, 0.0, torch.where(age < 100, 0.9, 0.99))
        self.hits.copy_(torch.lerp(hits, self.hits, keep))
        if self.config.revive_below:
            self._revive(torch.cat([scale.residual.flatten(0, 1) for scale in scanned]))
        self.updates += 1

    def _revive(self, residuals: Tensor) -> None:
        """Replace codes that are hardly used by residuals [N,C] of this batch; the new ones count as used for now."""
        mean = self.hits.mean(1, keepdim=True)  # [K,1]
        dead = self.hits.sum(0) < self.config.revive_below * mean.sum()  # [V]
        chosen = SampleRng(_REVIVAL, self.updates.view(1)).integers(len(residuals), self.vocab)[0]  # [V]
        replacement = residuals[chosen]  # [V,C]
        if dist.is_initialized():
            dist.broadcast(replacement, 0)
        self.embedding.weight.copy_(torch.where(dead.unsqueeze(1), replacement, self.embedding.weight))
        self.hits.copy_(torch.where(dead, mean, self.hits))


class MultiscaleQuantization(Settings):
    """A multi-scale residual quantiser."""

    vocab: int = Field(4096, ge=1)
    phis: NonNegativeInt = 4
    """Convolutions that refine the scales' contributions, each shared by neighbouring scales; 0: one for each scale.
    More than there are scales would leave some untrained, which data parallel training refuses."""
    phi_strength: float = Field(0.5, ge=0.0, le=1.0)
    """Share r of the convolution in (1 - r) h + r conv(h); 0: no convolutions."""
    cosine: bool = False
    """Look codes up by angle instead of distance."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which the encoder follows the codes."""
    scale_dropout: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the training images of which the decoder sees only the first scales, any number of them."""
    revive_below: float = Field(0.0, ge=0.0, lt=1.0)
    """Codes that are hit less often than this share of the mean are replaced by residuals of the batch; 0: never."""

    def build(self, channels: int, scales: Schedule) -> MultiscaleQuantizer:
        """The quantiser with fresh weights."""
        return MultiscaleQuantizer(self, channels, scales)
