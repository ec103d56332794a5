"""What one pass keeps of a set of images on one extractor: exact statistics, and features only where they are needed.

Letters: N images, d features, B images of a batch, C classes of the extractor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.blocks import in_blocks
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.frechet import Gaussian
from genlab.evaluation.inception_score import InceptionScoreStream, SplitRule
from genlab.evaluation.metrics import Need
from genlab.evaluation.moments import Moments
from genlab.evaluation.processes import add_up, gather_rows

_SAMPLE = 2048  # of larger sets, at most as many features are kept for intervals; smaller sets are kept whole,
_SMALL = 4  # as are sets below this many times d images: they take less than the moments, and are exact below full rank


@dataclass(frozen=True)
class Layer:
    """One feature layer of a finished set."""

    count: int
    """N; 0 where a file of statistics does not say."""
    moments: Moments | None
    """Of all images; None where all features are there, or `fitted` is."""
    features: Tensor | None
    """[n,d] float32, of every `stride`-th image, in order."""
    stride: int = 1
    paired: bool = True
    """The features may be used pair by pair: they are all, or as many as were asked for."""
    fitted: Gaussian | None = None
    """From a file of statistics."""

    @property
    def rows(self) -> Tensor:
        """The features [n,d] that pairwise metrics use.

        Raises:
            DataError: only statistics are there.
        """
        if self.features is None or not self.paired:
            raise DataError("this metric needs the features of images, of which only mean and covariance are there")
        return self.features

    @cached_property
    def gaussian(self) -> Gaussian:
        """The Gaussian fitted to all images. Raises DataError for fewer than two."""
        if self.fitted is not None:
            return self.fitted
        if self.moments is not None:
            return Gaussian.from_moments(self.moments)
        return Gaussian.from_features(self.rows)


@dataclass(frozen=True)
class Collected:
    """A finished set of images on one extractor."""

    layers: dict[str, Layer]
    inception: InceptionScoreStream | None = None
    labels: Tensor | None = None
    """int64 [N]."""
    pictures: Tensor | None = None
    """uint8 [n,3,R,R], some images for the report."""
    picture_labels: Tensor | None = None
    problems: list[str] = field(default_factory=list)


class LayerCollector:
    """One layer while images come in.

    Args:
        count, width: N and d.
        most: keep about as many features, evenly spaced; None: a few, for intervals.
    """

    def __init__(self, count: int, width: int, most: int | None, device: torch.device):
        small = max(_SMALL * width, _SAMPLE)
        self.count, self.width = count, width
        self.paired = most is not None or count <= small
        self.stride = -(-count // (max(small, most or 0) if self.paired else _SAMPLE))
        self.moments = None if self.stride == 1 else Moments(width, device)
        self.index: list[Tensor] = []
        self.rows: list[Tensor] = []

    def update(self, index: Tensor, features: Tensor) -> None:
        """Take in features [B,d] of the images `index` [B]."""
        if self.moments is not None:
            self.moments.update(features)
        kept = index % self.stride == 0
        self.index.append(index[kept])
        self.rows.append(features.cpu()[kept])

    def finish(self) -> Layer:
        """The layer of all processes' images, in order; features reach the main process only."""
        if self.moments is not None:
            self.moments.all_reduce()
        rows = gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *self.index]), self._stacked())
        return Layer(self.count, self.moments, rows, self.stride, self.paired)

    def _stacked(self) -> Tensor:
        return torch.cat([torch.empty(0, self.width), *self.rows])


class Collector:
    """All that is kept of one extractor's features while images come in.

    Args:
        needs: what the metrics ask for.
        count: N of the whole set, over all processes.
        widths: d of each layer.
        rule: how the inception score splits.
        most: features kept for pairwise metrics; None: all.
    """

    def __init__(
        self,
        extractor: Extractor,
        needs: frozenset[Need],
        count: int,
        widths: dict[str, int],
        rule: SplitRule,
        most: int | None = None,
    ):
        device = next(extractor.parameters(), torch.empty(0)).device
        self.name = extractor.name
        self.problems: list[str] = []
        self.layers: dict[str, LayerCollector] = {}
        if needs & {Need.MOMENTS, Need.FEATURES}:
            layer = extractor.feature_layer
            pairs = (most or count) if Need.FEATURES in needs else None
            self.layers[layer] = LayerCollector(count, widths[layer], pairs, device)
        if Need.SPATIAL in needs and extractor.spatial_layer:
            self.layers[extractor.spatial_layer] = LayerCollector(count, widths[extractor.spatial_layer], None, device)
        self.inception: InceptionScoreStream | None = None
        self._logits = extractor.logits_layer
        if Need.LOGITS in needs and self._logits:
            try:
                self.inception = InceptionScoreStream(count, widths[self._logits], rule)
            except DataError as error:  # too few images for the splits: the other metrics go on
                self.problems.append(str(error))

    def update(self, index: Tensor, features: dict[str, Tensor]) -> None:
        """Take in a batch: `index` int64 [B] and layers [B,d]."""
        for name, layer in self.layers.items():
            layer.update(index, features[name])
        if self.inception is not None and self._logits:
            self.inception.update(features[self._logits].cpu(), index)

    def state(self) -> dict[str, Tensor]:
        """The statistics, by name, without kept rows."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if layer.moments is not None:
                found |= {f"{name}.{key}": value.cpu() for key, value in layer.moments.state_dict().items()}
        if self.inception is not None:
            found |= {f"inception.{key}": value for key, value in self.inception.tensors().items()}
        return found

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Take in what an earlier process had collected."""
        for name, layer in self.layers.items():
            if layer.moments is not None:
                earlier = {key: state[f"{name}.{key}"] for key in ("count", "mean", "m2")}
                fresh = layer.moments.count == 0
                restored = Moments.from_state(earlier, layer.moments.mean.device)
                if fresh:
                    layer.moments = restored  # bit for bit, where a merge would round
                else:
                    layer.moments.merge(restored)
        if self.inception is not None:
            for key, value in self.inception.tensors().items():
                value += state[f"inception.{key}"]

    def kept(self, start: dict[str, int]) -> dict[str, Tensor]:
        """Rows kept since `start`, the number of batches that were in each layer."""
        found = {}
        for name, layer in self.layers.items():
            if layer.rows[start.get(name, 0) :]:
                found[f"{name}.index"] = torch.cat(layer.index[start.get(name, 0) :])
                found[f"{name}.rows"] = torch.cat(layer.rows[start.get(name, 0) :])
        return found

    def add_kept(self, kept: dict[str, Tensor], blocks: Tensor) -> None:
        """Take in rows that an earlier process kept, of images in the finished `blocks` alone."""
        for name, layer in self.layers.items():
            if f"{name}.index" in kept:
                use = in_blocks(kept[f"{name}.index"], blocks)
                layer.index.append(kept[f"{name}.index"][use])
                layer.rows.append(kept[f"{name}.rows"][use])

    def finish(self) -> tuple[dict[str, Layer], InceptionScoreStream | None]:
        """The whole set's statistics, merged over all processes."""
        layers = {name: layer.finish() for name, layer in self.layers.items()}
        if self.inception is not None:
            for value in self.inception.tensors().values():
                add_up(value)
        return layers, self.inception
