"""Vector quantisation: each position takes the nearest code (VQ-VAE, van den Oord et al. 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from genlab.core.settings import Settings
from genlab.tokenization.quantizers.books import AveragedBook, Averaging, Book, LearnedBook, LinearBook
from genlab.tokenization.quantizers.codebook import rotate, squared_error, straight_through, to_maps, to_vectors
from genlab.tokenization.quantizers.codes import check
from genlab.tokenization.quantizers.contract import Quantized, Quantizer

_TEMPERATURE, _LEAST = 0.01, 1e-5  # of the soft choices whose entropy is weighed; added to a mean before its logarithm


class VectorQuantizer(Quantizer):
    """Feature maps [B,C,H,W] <-> codes [B,H,W].

    Args:
        book: the code vectors.
        commitment: weight of the error with which features follow codes.
        codebook: weight of the error with which codes follow features; 0 where they do so without gradients.
        entropy: weight of the entropy term; 0: not computed.
        rotation: gradients by the rotation trick instead of straight through.
    """

    kind = "codes"

    def __init__(
        self, book: Book, commitment: float, codebook: float = 0.0, entropy: float = 0.0, rotation: bool = False
    ):
        super().__init__()
        self.embedding = book
        self.vocab, self.channels = book.table().shape
        self.commitment, self.codebook, self.entropy = commitment, codebook, entropy
        self.rotation = rotation

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            vectors = self._vectors(z)
            flat = vectors.detach().flatten(0, 2)
            if self.training:
                self.embedding.start(flat)
            table = self.embedding.table()
            codes = self.embedding.look_up(vectors)
            q = F.embedding(codes, table)  # [B,H,W,C]
            terms = {"commitment": squared_error(vectors, q.detach())}
            loss = self.commitment * terms["commitment"]
            if self.codebook:
                terms["codebook"] = squared_error(q, vectors.detach())
                loss = loss + self.codebook * terms["codebook"]
            if self.entropy:
                terms["entropy"] = _entropy_gap(vectors.flatten(1, 2), table)
                loss = loss + self.entropy * terms["entropy"]
            if self.training:
                self.embedding.update(flat, codes.flatten())
            seen = rotate(vectors, q) if self.rotation else straight_through(vectors, q)
            return Quantized(to_maps(seen), codes, loss, terms)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.embedding.look_up(self._vectors(z))

    def decode(self, codes: Tensor) -> Tensor:
        """Raises DataError for codes outside 0..V-1."""
        return to_maps(F.embedding(check(codes, self.vocab), self.embedding.table()))

    def _vectors(self, z: Tensor) -> Tensor:
        vectors = to_vectors(z.float())
        return F.normalize(vectors, dim=-1) if self.embedding.unit else vectors


def _entropy_gap(vectors: Tensor, table: Tensor) -> Tensor:
    """Entropy of each vector's soft choice, less that of the mean choice of the batch: [B], of [B,N,C]."""
    distances = vectors.square().sum(-1, keepdim=True) + table.square().sum(1) - 2.0 * vectors @ table.T  # [B,N,V]
    logits = -distances / _TEMPERATURE
    shares = logits.softmax(-1)
    mean = shares.mean((0, 1))  # [V]
    own = -(shares * logits.log_softmax(-1)).sum(-1).mean(1)
    return own + (mean * (mean + _LEAST).log()).sum()


class LearnedVQ(Settings):
    """A codebook that learns by gradients (VQGAN, latent diffusion, LlamaGen)."""

    name: Literal["learned"] = "learned"
    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    vocab: int = Field(16384, ge=1)
    unit: bool = False
    """Bring features and codes to length 1, as LlamaGen does."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which features follow codes; codes follow features with weight 1."""
    legacy: bool = False
    """Exchange the two weights, as the published VQGANs of taming-transformers and latent diffusion were trained."""
    entropy: NonNegativeFloat = 0.0
    """Weight of an entropy term that asks for sure choices among evenly used codes; 0: not computed."""
    rotation: bool = False
    """Gradients by the rotation trick (Fifty et al. 2024) instead of straight through."""

    def build(self, channels: int) -> VectorQuantizer:
        """The quantiser with fresh weights, for C channels."""
        weights = (1.0, self.commitment) if self.legacy else (self.commitment, 1.0)
        return VectorQuantizer(LearnedBook(self.vocab, channels, self.unit), *weights, self.entropy, self.rotation)


class AveragedVQ(Settings):
    """A codebook of running averages (VQ-VAE-2)."""

    name: Literal["ema"] = "ema"
    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    vocab: int = Field(1024, ge=1)
    unit: bool = False
    """Bring features and codes to length 1: look up by angle."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which features follow codes."""
    averaging: Averaging = Averaging()
    """How codes follow features."""
    rotation: bool = False
    """Gradients by the rotation trick (Fifty et al. 2024) instead of straight through."""

    def build(self, channels: int) -> VectorQuantizer:
        """The quantiser with fresh weights, for C channels."""
        book: AveragedBook = self.averaging.build(self.vocab, channels, self.unit)
        return VectorQuantizer(book, self.commitment, rotation=self.rotation)


class SimVQ(Settings):
    """A learnt linear map of a fixed codebook (Zhu et al. 2024)."""

    name: Literal["simvq"] = "simvq"
    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    vocab: int = Field(8192, ge=1)
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which features follow codes; codes follow features with weight 1."""
    rotation: bool = False
    """Gradients by the rotation trick (Fifty et al. 2024) instead of straight through."""

    def build(self, channels: int) -> VectorQuantizer:
        """The quantiser with fresh weights, for C channels."""
        return VectorQuantizer(LinearBook(self.vocab, channels), self.commitment, 1.0, rotation=self.rotation)
