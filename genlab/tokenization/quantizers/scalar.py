"""Quantisers without a codebook, which round each channel: FSQ, LFQ, BSQ. They are vector-quantize-pytorch's."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.tokenization.quantizers.codebook import squared_error, to_vectors
from genlab.tokenization.quantizers.codes import check
from genlab.tokenization.quantizers.contract import Quantized, Quantizer


class ScalarQuantizer(Quantizer):
    """Feature maps [B,C,H,W] <-> codes [B,H,W].

    Args:
        rule: FSQ or LFQ of vector-quantize-pytorch.
        vocab: V.
        channels: C.
    """

    kind = "codes"

    def __init__(self, rule: Any, vocab: int, channels: int):
        super().__init__()
        self.rule = rule
        self.vocab, self.channels = vocab, channels

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            q, codes = self.rule(z.float())
            return Quantized(q, codes.long(), z.new_zeros(len(z), dtype=torch.float32), {})

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.rule(z.float())[1].long()

    def decode(self, codes: Tensor) -> Tensor:
        """Raises DataError for codes outside 0..V-1."""
        return self.rule.indices_to_codes(check(codes, self.vocab))


class SignQuantizer(ScalarQuantizer):
    """Rounds each channel to its sign, with an entropy term and a commitment term in training."""

    def __init__(self, rule: Any, config: LFQ | BSQ, channels: int):
        super().__init__(rule, config.vocab, channels)
        self.config = config

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            (q, codes, _), parts = self.rule(z, self.config.sharpness, return_loss_breakdown=True)
            inputs = F.normalize(z, dim=1) if self.rule.spherical else z
            gap = parts.per_sample_entropy - self.config.diversity * parts.batch_entropy  # of the whole batch
            terms = {
                "commitment": squared_error(to_vectors(inputs), to_vectors(q.detach())),
                "entropy": gap.expand(len(z)),
            }
            loss = self.config.commitment * terms["commitment"] + self.config.entropy * terms["entropy"]
            return Quantized(q, codes.long(), loss, terms)


class FSQ(Settings):
    """Finite scalar quantisation (Mentzer et al. 2023): each channel is rounded to one of its levels."""

    name: Literal["fsq"] = "fsq"
    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    levels: tuple[int, ...] = Field((8, 5, 5, 5), min_length=1)
    """Values of each channel, each at least 2; the first channel changes fastest as codes count up."""
    symmetric: bool = False
    """Levels symmetric about 0 (Parker et al. 2024); other codes than without."""

    @property
    def vocab(self) -> int:
        """The product of the levels."""
        return math.prod(self.levels)

    def build(self, channels: int) -> ScalarQuantizer:
        """The quantiser for C channels. Raises ConfigError unless there are as many levels."""
        if min(self.levels) < 2:
            raise ConfigError(f"quantizer fsq: levels={list(self.levels)}, but each must be at least 2")
        _check_channels("fsq", f"{len(self.levels)} levels", len(self.levels), channels)
        from vector_quantize_pytorch import FSQ as Rule

        return ScalarQuantizer(Rule(list(self.levels), preserve_symmetry=self.symmetric), self.vocab, channels)


class Signs(Settings):
    """What LFQ and BSQ have in common."""

    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    bits: int = Field(14, ge=1, le=24)
    """Channels, each coded by its sign; the first is the most significant bit."""
    entropy: NonNegativeFloat = 0.1
    """Weight of the entropy term, which asks for sure choices among evenly used codes."""
    diversity: NonNegativeFloat = 1.0
    """Weight of even use within the entropy term."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the error with which features follow codes."""
    sharpness: PositiveFloat = 100.0
    """Inverse temperature of the soft choices whose entropy is weighed."""

    @property
    def vocab(self) -> int:
        """2 to the number of bits."""
        return 1 << self.bits

    def _build(self, name: str, channels: int, spherical: bool) -> Any:
        _check_channels(name, f"{self.bits} bits", self.bits, channels)
        from vector_quantize_pytorch import LFQ as Rule

        return Rule(dim=self.bits, codebook_size=self.vocab, spherical=spherical)


class LFQ(Signs):
    """Lookup-free quantisation (Yu et al. 2023): codes are the corners +-1 of a cube."""

    name: Literal["lfq"] = "lfq"

    def build(self, channels: int) -> SignQuantizer:
        """The quantiser for C channels. Raises ConfigError unless there are as many bits."""
        return SignQuantizer(self._build(self.name, channels, spherical=False), self, channels)


class BSQ(Signs):
    """Binary spherical quantisation (Zhao et al. 2024): features and codes are of length 1."""

    name: Literal["bsq"] = "bsq"

    def build(self, channels: int) -> SignQuantizer:
        """The quantiser for C channels. Raises ConfigError unless there are as many bits."""
        return SignQuantizer(self._build(self.name, channels, spherical=True), self, channels)


def _check_channels(name: str, what: str, needed: int, channels: int) -> None:
    if needed != channels:
        raise ConfigError(f"quantizer {name}: {what} but {channels} channels; set code_channels to {needed}")
