"""What is scored: images that can be asked for by index, from wherever they come.

One contract for generators, folders, archives and data sets, so that processes take their shares, an interrupted
evaluation takes up the rest, and metrics never know the difference.

Letters: N images of a source, n of a part, R side, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.data.source import ImageSource, digest

READ_AHEAD = 64
"""Images read at once from disk or memory."""


@dataclass(frozen=True)
class Part:
    """Some images of a source."""

    index: list[int]
    images: Tensor
    """uint8 [n,3,R,R]."""
    labels: Tensor | None
    """int64 [n]; None where no classes are known."""


class ScoredImages(ABC):
    """A finite set of square images with a fixed order.

    Args:
        count: N.
        image_size: R.
        class_names: one per label; empty where they are unknown.
    """

    def __init__(self, count: int, image_size: int, class_names: Sequence[str] = ()):
        self._count, self.image_size, self.class_names = count, image_size, tuple(class_names)
        self.warnings: list[str] = []

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        """The images of `index`, each in 0..N-1, in that order, in parts of any size.

        Raises:
            DataError: an image that cannot be read, by name.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able account of what this is; two sources with equal accounts hold the same images."""

    def name(self, index: int) -> str:
        """What to call one image in messages."""
        return f"image {index}"

    def class_sorted(self) -> bool:
        """Whether the images are known to lie sorted by class, which spoils scores over consecutive chunks."""
        return False


Draw: TypeAlias = Callable[[Sequence[int]], Iterator[tuple[list[int], Tensor]]]
"""Indices of a plan -> (indices, uint8 images [n,3,R,R]) in parts; `genlab.sampling.sample_images`, curried."""


class GeneratedImages(ScoredImages):
    """A generator sampled on the fly by a plan of labels: nothing touches the disk.

    Args:
        draw: makes images; image i must depend on i, the labels and the generator's settings alone.
        labels: one per image.
        account: run, weights, seed, sampling settings, rounding rule: all that images depend on besides the labels.
    """

    def __init__(
        self, draw: Draw, labels: Sequence[int], class_names: Sequence[str], image_size: int, account: dict[str, Any]
    ):
        super().__init__(len(labels), image_size, class_names)
        self._draw, self._labels, self._account = draw, torch.tensor(labels, dtype=torch.int64), account

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        for drawn, images in self._draw(index):
            yield Part(drawn, images, self._labels[drawn] if self.class_names else None)

    def describe(self) -> dict[str, Any]:
        return {"kind": "generator", **self._account, "labels": digest(self._labels.numpy().tobytes())}

    def name(self, index: int) -> str:
        return f"sample {index} (class {int(self._labels[index])})"


class DataImages(ScoredImages):
    """A data set of genlab's, without augmentation."""

    def __init__(self, source: ImageSource, name: str):
        super().__init__(len(source), source.image_size, source.class_names)
        self.source, self._name = source, name

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        for start in range(0, len(index), READ_AHEAD):
            part = list(index[start : start + READ_AHEAD])
            images, labels = self.source.fetch(part)
            yield Part(part, images, labels if self.class_names else None)

    def describe(self) -> dict[str, Any]:
        return {"kind": "data", "name": self._name, "fingerprint": self.source.fingerprint(), "size": self.image_size}


class Subset(ScoredImages):
    """`count` images of another source, chosen by seed: an honest sample even of a class-sorted folder."""

    def __init__(self, source: ScoredImages, count: int, seed: int):
        if not 0 < count <= len(source):
            raise DataError(f"{count} images were asked for, there are {len(source)}; lower --samples")
        super().__init__(count, source.image_size, source.class_names)
        self._source, self._seed = source, seed
        self._chosen = np.random.default_rng(seed).permutation(len(source))[:count]
        self.warnings = [*source.warnings, f"{count} of {len(source)} images were scored, chosen by seed {seed}"]

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        done = 0
        for part in self._source.parts([int(self._chosen[i]) for i in index]):
            yield replace(part, index=list(index[done : done + len(part.index)]))
            done += len(part.index)

    def describe(self) -> dict[str, Any]:
        return {**self._source.describe(), "subset": len(self), "subset_seed": self._seed}

    def name(self, index: int) -> str:
        return self._source.name(int(self._chosen[index]))


def known_sorted(labels: Tensor | None) -> bool:
    """Whether labels [N] are in non-decreasing order and hold a class more than once, as class-sorted archives do."""
    if labels is None or len(labels) < 3:
        return False
    steps = labels.diff()
    return bool((steps >= 0).all() and (steps == 0).any() and (steps > 0).any())


def label_plan(num_classes: int, count: int, rule: str, seed: int) -> list[int]:
    """The label of every image of an evaluation.

    Args:
        rule: "balanced": every class equally often, up to one, in turn, so that every stretch of the plan is mixed;
            "random": uniform, by seed (DiT, SiT: labels drawn per batch).
    """
    if num_classes == 0:
        return [0] * count
    if rule == "random":
        return np.random.default_rng(seed).integers(num_classes, size=count).tolist()
    return [i % num_classes for i in range(count)]
