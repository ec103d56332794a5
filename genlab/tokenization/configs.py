"""The union of all tokenizers that can be trained, told apart by their `name`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from genlab.tokenization.deep_compression import DeepCompression
from genlab.tokenization.kl import KL
from genlab.tokenization.multiscale import FlexibleVQ, MultiscaleVQ
from genlab.tokenization.vq import VQ

AnyTokenizer: TypeAlias = KL | VQ | MultiscaleVQ | FlexibleVQ | DeepCompression
TokenizerConfig: TypeAlias = Annotated[AnyTokenizer, Field(discriminator="name")]
"""Each has `latent_spec(image_size)`, which needs no weights, and `build(image_size)` with fresh ones."""
