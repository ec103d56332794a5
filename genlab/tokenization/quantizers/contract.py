"""What every quantiser promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor, nn


class Quantized(NamedTuple):
    """The outcome of a quantiser's training pass."""

    z: Tensor
    """[B,C,H,W]: the values of the chosen codes, the gradient of the input (straight-through or rotation trick)."""
    codes: Tensor
    """int64: [B,H,W] (kind codes), [B,H,W,D] (residual), [B,L] (multiscale: scales one after another, row-major)."""
    loss: Tensor
    """[B], the quantiser's weighted terms."""
    terms: dict[str, Tensor]
    """The same terms unweighted, each [B]: commitment, codebook, entropy."""


class Quantizer(nn.Module, ABC):
    """Feature maps [B,C,H,W] <-> codes. Computes in fp32, whatever the autocast."""

    kind: Literal["codes", "residual", "multiscale"]
    vocab: int
    """V: codes are 0..V-1."""
    channels: int
    """C of the feature maps."""

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """The training pass; updates whatever is learnt without gradients (averaged codebooks, usage)."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Feature maps -> codes, without gradients and without changing anything."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> the feature maps [B,C,H,W] that go into the decoder."""
