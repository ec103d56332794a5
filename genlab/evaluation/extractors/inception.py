"""Inception-v3 "2015-12-05", the network behind FID, IS, sFID, KID and precision/recall.

The layers are torch-fidelity 0.4's port of the TensorFlow graph; the forward pass here resizes by the same rule
several times quicker, gives the sFID layer as well, and stops at the deepest layer asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE_1,
    InceptionE_2,
)

from genlab.core.public_weights import FoundWeights, WeightsFile
from genlab.evaluation.extractors.base import Extractor, Precision
from genlab.evaluation.frechet import sfid_features
from genlab.evaluation.resize import tf1_bilinear

WEIGHTS = WeightsFile(
    what="Inception-v3 for FID",
    file="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    megabytes=96,
    instead="score offline with --extractor efflite0 (its numbers are no FID and are named otherwise)",
)
_SIDE = 299


class Network(nn.Module):
    """torchvision's Inception-v3 as the 2015 graph has it; the names of the modules are those of the weights file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE_1(1280)
        self.Mixed_7c = InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)


class Inception(Extractor):
    """uint8 images of any size -> TF1 bilinear 299, (x - 128) / 128 -> Inception-v3.

    Layers: `pool` [B, 2048]; `logits_unbiased` [B, 1008], the logits without bias that IS uses; `logits` with it;
    `spatial` [B, 2023], the first 7 channels of Mixed_6d with channels last, for sFID; and `pool_64`, `pool_192`,
    `pool_768`, spatial means of earlier stages.
    """

    family = "inception"
    dimensions: ClassVar = {
        "pool_64": 64,
        "pool_192": 192,
        "spatial": 2023,
        "pool_768": 768,
        "pool": 2048,
        "logits_unbiased": 1008,
        "logits": 1008,
    }
    feature_layer = "pool"
    logits_layer = "logits_unbiased"
    spatial_layer = "spatial"
    resize = "TensorFlow 1 bilinear to 299x299 (no half-pixel centres, no antialiasing), (x - 128) / 128"

    def __init__(self, found: FoundWeights, layers: Sequence[str] | None = None, precision: Precision = "strict"):
        with torch.device("meta"):
            network = Network()
        found.load_into(network, found.read())
        super().__init__(network, found, layers, precision)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 3, 299, 299] in [-1, 1), in the network's dtype."""
        resized = tf1_bilinear(images, _SIDE).sub_(128.0).div_(128.0)
        return resized.to(dtype=next(self.network.parameters()).dtype, memory_format=torch.channels_last)

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        """[B, 3, 299, 299] -> the layers down to the deepest one asked for."""
        found = {}
        for layer, value in self._deeper_and_deeper(inputs):
            found[layer] = value
            if found.keys() >= set(self.layers):
                break
        return found

    def _deeper_and_deeper(self, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and value, shallow to deep; what follows is not computed before it is asked for."""
        n: Any = self.network
        x = n.Conv2d_2b_3x3(n.Conv2d_2a_3x3(n.Conv2d_1a_3x3(inputs)))  # [B, 64, 147, 147]
        x = F.max_pool2d(x, 3, stride=2)  # [B, 64, 73, 73]
        yield "pool_64", x.mean((2, 3))
        x = n.Conv2d_4a_3x3(n.Conv2d_3b_1x1(x))  # [B, 192, 71, 71]
        x = F.max_pool2d(x, 3, stride=2)  # [B, 192, 35, 35]
        yield "pool_192", x.mean((2, 3))
        x = n.Mixed_6a(n.Mixed_5d(n.Mixed_5c(n.Mixed_5b(x))))  # [B, 768, 17, 17]
        x = n.Mixed_6d(n.Mixed_6c(n.Mixed_6b(x)))  # [B, 768, 17, 17]
        yield "spatial", sfid_features(x)  # the 1x1 branch comes first
        x = n.Mixed_6e(x)  # [B, 768, 17, 17]
        yield "pool_768", x.mean((2, 3))
        x = n.Mixed_7c(n.Mixed_7b(n.Mixed_7a(x))).mean((2, 3))  # [B, 2048]
        yield "pool", x
        logits = x @ n.fc.weight.T  # [B, 1008]
        yield "logits_unbiased", logits
        yield "logits", logits + n.fc.bias


def load(path: Path | None, layers: Sequence[str] | None, precision: Precision, allow_unofficial: bool) -> Inception:
    """The extractor with weights from `path`, the torch hub cache or the release page."""
    return Inception(WEIGHTS.locate(path, allow_unofficial), layers, precision)
