"""Judging small labelled images by what they show: recognised as their class, and not copied."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.classifier import CopyCheck, DigitsClassifier, nearest_distances
from genlab.evaluation.neighbours import squared_radii
from genlab.evaluation.pairs import clouds


def class_accuracy(real: Tensor, real_labels: Tensor, generated: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Share of generated digits that a classifier trained on the real ones recognises as asked, and that per class [K].

    Args:
        real, generated: pixels as features, [n, 3 R R] in [0, 1].
    """
    judge = DigitsClassifier().fit(_images(real), real_labels)
    return judge.class_accuracy(_images(generated), labels)


def copies(real: Tensor, generated: Tensor) -> CopyCheck:
    """Distances of generated images to the nearest training image, and of training images to the nearest other one.

    Leaving one out plays the part of held-out real images: both distances are to as good as the same set.
    """
    if len(real) < 2:
        raise DataError("a check for copies needs at least two training images")
    own = squared_radii(clouds(real, real)[0], 1).sqrt()
    return CopyCheck(nearest_distances(generated, real), own)


def _images(pixels: Tensor) -> Tensor:
    side = round((pixels.shape[1] / 3) ** 0.5)
    if pixels.shape[1] != 3 * side * side:
        raise DataError(f"{pixels.shape[1]} features are no pixels of a square image; ask for class_accuracy@pixels")
    return pixels.cpu().mul(255).round().to(torch.uint8).view(-1, 3, side, side)
