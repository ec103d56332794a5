"""Codes drawn with Gumbel noise (dVAE, Ramesh et al. 2021; the f8 model of taming-transformers)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.core.settings import Settings
from genlab.tokenization.quantizers.codebook import to_maps
from genlab.tokenization.quantizers.codes import check
from genlab.tokenization.quantizers.contract import Quantized, Quantizer
from samplers.noise import SampleRng

_NOISE = 0x6B3B31  # the stream of the Gumbel noise
_TINY = 1e-10  # keeps logarithms finite


class GumbelQuantizer(Quantizer):
    """Feature maps [B,C,H,W] <-> codes [B,H,W]: a convolution gives each code's logit.

    In training codes are drawn, with noise that is a function of the number of training passes (part of the state) and
    the process; otherwise the likeliest is taken.

    Args:
        code_channels: channels of code vectors; default: as the feature maps.
    """

    kind = "codes"
    updates: Tensor
    """int64 [], the training passes."""

    def __init__(self, config: GumbelVQ, channels: int, code_channels: int | None = None):
        super().__init__()
        self.config = config
        self.vocab, self.channels = config.vocab, channels
        self.proj = nn.Conv2d(channels, config.vocab, 1)
        self.embed = nn.Embedding(config.vocab, code_channels or channels)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            if not self.training:
                return self.choose(z.float(), None, 1.0)
            batch, _, height, width = z.shape
            rank = dist.get_rank() if dist.is_initialized() else 0
            uniform = SampleRng(_NOISE, self.updates.view(1)).fork(rank).uniform(batch, self.vocab, height, width)[0]
            noise = -(-(uniform + 2.0**-25).log()).log()
            temperature = self.temperature()
            self.updates += 1
            return self.choose(z.float(), noise, temperature)

    def choose(self, z: Tensor, noise: Tensor | None, temperature: Tensor | float) -> Quantized:
        """The pass with given Gumbel noise [B,V,H,W], or without."""
        logits = self.proj(z)  # [B,V,H,W]
        soft = ((logits if noise is None else logits + noise) / temperature).softmax(1)
        codes = soft.argmax(1)
        hard = torch.zeros_like(soft).scatter_(1, codes.unsqueeze(1), 1.0)
        choice = hard - soft.detach() + soft
        q = torch.einsum("bvhw,vc->bchw", choice, self.embed.weight.float())
        p = logits.softmax(1)
        kl = (p * (p * self.vocab + _TINY).log()).sum(1).flatten(1).mean(1)  # [B]
        return Quantized(q, codes, self.config.kl * kl, {"kl": kl})

    def temperature(self) -> Tensor:
        """What logits are divided by at this point of the training: from `temperature` down to `last_temperature`."""
        config = self.config
        done = (self.updates.float() / config.steps).clamp(max=1.0)
        return config.last_temperature + (config.temperature - config.last_temperature) * 0.5 * (
            1.0 + torch.cos(math.pi * done)
        )

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.proj(z.float()).argmax(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Raises DataError for codes outside 0..V-1."""
        return to_maps(F.embedding(check(codes, self.vocab), self.embed.weight.float()))


class GumbelVQ(Settings):
    """Codes drawn with Gumbel noise."""

    name: Literal["gumbel"] = "gumbel"
    kind: ClassVar[Literal["codes"]] = "codes"
    depth: ClassVar[int] = 1
    vocab: int = Field(8192, ge=1)
    kl: NonNegativeFloat = 1e-8
    """Weight of the divergence of the codes' distribution from the uniform one."""
    temperature: PositiveFloat = 0.9
    """At the start; sinks along a half cosine."""
    last_temperature: PositiveFloat = 1e-6
    """After `steps` training passes."""
    steps: PositiveInt = 1_000_001

    def build(self, channels: int) -> GumbelQuantizer:
        """The quantiser with fresh weights, for C channels."""
        return GumbelQuantizer(self, channels)
