"""What a partition may want to know of the classes: how many images they have, and how similar they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError, DataError
from genlab.data.latents import LatentSource
from genlab.data.loader import Source
from genlab.data.source import ImageSource
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.pixels import NAME as PIXELS
from genlab.evaluation.pixels import PixelFeatures

_IMAGES_OF_A_CLASS = 128  # of which its mean is taken
_BATCH = 64


class MeasuredFacts:
    """The facts of a source and a teacher, found when they are asked for.

    Args:
        teacher: gives the teacher's network.
        device: of the extractors that means are taken with.
    """

    def __init__(self, source: Source, teacher: Callable[[], Network], device: torch.device | str = "cpu"):
        self.source, self.teacher, self.device = source, teacher, device

    def counts(self) -> Tensor:
        """Images of each class, [N]. Raises DataError for a stream."""
        return torch.bincount(self._readable().labels(), minlength=self.source.num_classes)

    def vectors(self, features: str) -> Tensor:
        """[N,D]: rows of the teacher's class table, or means over images under an extractor.

        Raises:
            ConfigError: a teacher without a class table, an unknown extractor.
            DataError: images without random access, or a class without one.
        """
        if features == "teacher":
            return class_table(self.teacher())
        extractor = PixelFeatures() if features == PIXELS else load_extractor(features, device=self.device)
        source = self._readable()
        images = source.build_images() if isinstance(source, LatentSource) else source
        if not isinstance(images, ImageSource):
            raise DataError("partition.features: needs images that can be read in any order, not a stream")
        labels = images.labels()
        means = []
        for label in range(images.num_classes):
            rows = (labels == label).nonzero().flatten()[:_IMAGES_OF_A_CLASS]
            if len(rows) == 0:
                raise DataError(f"partition.features: class {label} has no image; choose another partition")
            found = [extractor(images.fetch(part.tolist())[0])[extractor.feature_layer] for part in rows.split(_BATCH)]
            means.append(torch.cat(found).mean(0).cpu())
        return torch.stack(means)

    def _readable(self) -> ImageSource | LatentSource:
        if not isinstance(self.source, ImageSource | LatentSource):
            raise DataError("partition: the classes of a stream are not known beforehand; choose another partition")
        return self.source


def class_table(network: Network) -> Tensor:
    """The vector [N,D] by which a network knows each of its N classes. Raises ConfigError if it has no such table."""
    classes = network.num_classes
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) and len(module.weight) in (classes, classes + 1):
            return module.weight[:classes].detach()
        if name.endswith("label") and isinstance(weight, Tensor) and weight.shape[-1] == classes:
            return weight.detach().T  # of networks that are told classes as rows of shares
    raise ConfigError(
        f"partition.features: {type(network).__name__} has no table of {classes} classes; name an extractor instead"
    )
