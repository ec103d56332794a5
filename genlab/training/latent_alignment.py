"""VA-VAE: a tokenizer whose latents are drawn towards a vision encoder's features (Yao et al., CVPR 2025)."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from genlab.core.contracts import Reconstruction, TrainableTokenizer
from genlab.core.errors import ConfigError
from genlab.tokenization.losses.adversarial import adaptive_weight
from genlab.tokenization.losses.alignment import Alignment, AlignmentLoss
from genlab.training.heads import WithHead
from genlab.training.vision_features import VisionEncoder


class AlignedTokenizer(WithHead):
    """A tokenizer and the loss of its latents, whose linear map learns along and is not exported."""

    def __init__(self, tokenizer: TrainableTokenizer, loss: AlignmentLoss):
        super().__init__(tokenizer, loss)

    def forward(self, images: Tensor, rng: object, features: Tensor) -> tuple[Reconstruction, Tensor]:
        """The tokenizer's training pass, and the alignment of its latents with patch features [B,N,D], [B]."""
        made = cast(Reconstruction, self.trained(images, rng))
        return made, self.head(made.latents, features)


class LatentAlignment(Alignment):
    """The `alignment:` section of a tokenizer's `reconstruction:`."""

    encoder: VisionEncoder

    def weigh(self, reconstruction: Tensor, aligned: Tensor, tokenizer: TrainableTokenizer) -> Tensor:
        """The weight, a scalar, for losses [B]: `weight` times the ratio of gradients at the encoder's last layer."""
        weight = aligned.new_tensor(self.weight)
        if not self.adaptive:
            return weight
        layer = _last_encoder_layer(tokenizer)
        return weight * adaptive_weight(reconstruction.mean(), aligned.mean(), layer)

    def wrap(self, tokenizer: TrainableTokenizer, feature_channels: int) -> AlignedTokenizer:
        """The tokenizer with a fresh linear map. Raises ConfigError for one that has no continuous latents."""
        _last_encoder_layer(tokenizer)
        return AlignedTokenizer(tokenizer, self.build(tokenizer.spec.channels, feature_channels))


def _last_encoder_layer(tokenizer: TrainableTokenizer) -> Tensor:
    layer = tokenizer.last_encoder_layer
    if layer is None:
        raise ConfigError(
            f"reconstruction.alignment: {type(tokenizer).__name__} shows no continuous latents to align; "
            "choose tokenizer kl or dc, or remove it"
        )
    return layer
