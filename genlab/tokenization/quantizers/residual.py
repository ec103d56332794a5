"""Residual quantisation: each depth codes what the ones before left over (RQ-VAE, Lee et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.tokenization.quantizers.books import Averaging, Book, LearnedBook
from genlab.tokenization.quantizers.codebook import squared_error, straight_through, to_maps, to_vectors
from genlab.tokenization.quantizers.codes import check
from genlab.tokenization.quantizers.contract import Quantized, Quantizer
from samplers.noise import SampleRng

_DROPOUT = 0xD1D0  # the stream of depth dropout


class Layer(NamedTuple):
    """One depth of an encoding."""

    codes: Tensor
    """int64 [B,h,w]."""
    vectors: Tensor
    """[B,h,w,E]: their code vectors, as they were looked up."""
    residual: Tensor
    """[B,h,w,E]: what was looked up, without gradients."""


class ResidualQuantizer(Quantizer):
    """Feature maps [B,C,H,W] <-> codes [B,h,w,D].

    Blocks of b_h x b_w positions are one vector of E = b_h b_w C channels (row by row, channels fastest), so that
    (h, w) = (H / b_h, W / b_w). Without blocks these are the same.
    """

    kind = "residual"
    updates: Tensor
    """int64 [], the training passes; kept only for depth dropout."""

    def __init__(self, config: ResidualVQ, channels: int):
        super().__init__()
        self.config = config
        self.vocab, self.channels, self.depth = config.vocab, channels, config.depth
        width = channels * config.block[0] * config.block[1]
        self.books = nn.ModuleList(self._book(width) for _ in range(1 if config.shared else config.depth))
        if config.depth_dropout:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            vectors = self.to_blocks(z.float())
            layers = list(self.scan(vectors, update=self.training))
            sums = torch.stack([layer.vectors for layer in layers]).cumsum(0)  # [D,B,h,w,E]
            terms = {"commitment": _mean_error(vectors, sums.detach())}
            loss = self.config.commitment * terms["commitment"]
            if self.config.averaging is None:
                terms["codebook"] = _mean_error(vectors.detach(), sums)
                loss = loss + terms["codebook"]
            dropping = self.training and self.config.depth_dropout
            seen = self._drop_depths(sums) if dropping else sums[-1]
            codes = torch.stack([layer.codes for layer in layers], dim=-1)
            return Quantized(self.from_blocks(straight_through(vectors, seen)), codes, loss, terms)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return torch.stack([layer.codes for layer in self.scan(self.to_blocks(z.float()))], dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B,h,w,D], or of the first depths only -> [B,C,H,W], the sum of their vectors.

        Raises:
            DataError: codes outside 0..V-1.
        """
        return self.from_blocks(self.embed(codes).sum(-2))

    def decode_depth(self, codes: Tensor, depth: int) -> Tensor:
        """What depth 0..D-1 of codes [B,h,w,D] adds, [B,C,H,W]."""
        return self.from_blocks(self.embed(codes)[..., depth, :])

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors [...,D',E] of codes [...,D'] of the first D' depths."""
        check(codes, self.vocab)
        parts = [F.embedding(part, self.book(d).table()) for d, part in enumerate(codes.unbind(-1))]
        return torch.stack(parts, dim=-2)

    @torch.no_grad()
    def soft_codes(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """softmax(-squared distance / temperature) over the codes, [B,h,w,D,V], along the path of the hard codes."""
        with torch.autocast(z.device.type, enabled=False):
            parts = []
            for d, layer in enumerate(self.scan(self.to_blocks(z.float()))):
                table, rest = self.book(d).table(), layer.residual
                distances = rest.square().sum(-1, keepdim=True) + table.square().sum(1) - 2.0 * rest @ table.T
                parts.append((-distances / temperature).softmax(-1))
            return torch.stack(parts, dim=-2)

    def scan(self, vectors: Tensor, update: bool = False) -> Iterator[Layer]:
        """Encode blocks [B,h,w,E], depth by depth; books that learn by averages do so after each depth if asked."""
        rest = vectors.detach()
        for d in range(self.depth):
            book, flat = self.book(d), rest.flatten(0, 2)
            if update and (d == 0 or not self.config.shared):
                book.start(flat)
            codes = book.look_up(rest)
            chosen = F.embedding(codes, book.table())
            if update:
                book.update(flat, codes.flatten())
            yield Layer(codes, chosen, rest)
            rest = rest - chosen.detach()

    def book(self, depth: int) -> Book:
        """The code vectors of a depth 0..D-1."""
        book = self.books[0 if self.config.shared else depth]
        assert isinstance(book, Book)
        return book

    def to_blocks(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,h,w,E].

        Raises:
            ConfigError: the maps are no multiple of the blocks.
        """
        height, width = self.config.block
        if maps.shape[2] % height or maps.shape[3] % width:
            raise ConfigError(f"feature maps of {tuple(maps.shape[2:])} cannot be cut into blocks of {height}x{width}")
        tall = to_vectors(maps).unflatten(2, (-1, width)).unflatten(1, (-1, height))  # [B,h,bh,w,bw,C]
        return tall.transpose(2, 3).flatten(3)

    def from_blocks(self, vectors: Tensor) -> Tensor:
        """[B,h,w,E] -> [B,C,H,W]."""
        parts = vectors.unflatten(3, (*self.config.block, self.channels))  # [B,h,w,bh,bw,C]
        return to_maps(parts.transpose(2, 3).flatten(3, 4).flatten(1, 2))

    def _book(self, width: int) -> Book:
        if self.config.averaging is None:
            return LearnedBook(self.vocab, width)
        return self.config.averaging.build(self.vocab, width)

    def _drop_depths(self, sums: Tensor) -> Tensor:
        """Of some samples only the first depths, as many as chance decides."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        rng = SampleRng(_DROPOUT, self.updates.view(1)).fork(rank)
        batch = sums.shape[1]
        dropped = rng.uniform(batch)[0] < self.config.depth_dropout
        last = torch.where(dropped, rng.integers(self.depth, batch)[0], self.depth - 1)
        self.updates += 1
        return sums[last, torch.arange(batch, device=sums.device)]


def _mean_error(vectors: Tensor, sums: Tensor) -> Tensor:
    """Mean squared error [B] of the sums after all depths."""
    return torch.stack([squared_error(vectors, total) for total in sums]).mean(0)


class ResidualVQ(Settings):
    """A residual quantiser."""

    name: Literal["residual"] = "residual"
    kind: ClassVar[Literal["residual"]] = "residual"
    vocab: int = Field(16384, ge=1)
    depth: PositiveInt = 4
    """D, codes of a position."""
    shared: bool = True
    """One codebook for all depths."""
    averaging: Averaging | None = Averaging()
    """How codes follow what they stand for; null: they learn by gradients."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which features follow codes."""
    block: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Positions (down, across) that are coded together."""
    depth_dropout: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the training images of which the decoder sees only the first depths, any number of them."""

    def build(self, channels: int) -> ResidualQuantizer:
        """The quantiser with fresh weights, for C channels."""
        return ResidualQuantizer(self, channels)
