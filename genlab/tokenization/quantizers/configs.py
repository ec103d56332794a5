"""The quantisers that a config can name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from genlab.tokenization.quantizers.gumbel import GumbelVQ
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.quantizers.scalar import BSQ, FSQ, LFQ
from genlab.tokenization.quantizers.vector import AveragedVQ, LearnedVQ, SimVQ

QuantizerConfig: TypeAlias = Annotated[
    LearnedVQ | AveragedVQ | GumbelVQ | ResidualVQ | FSQ | LFQ | BSQ | SimVQ, Field(discriminator="name")
]
"""Each has `kind`, `vocab`, `depth` (1 unless residual) and `build(channels) -> Quantizer`."""
