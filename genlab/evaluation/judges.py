"""Judging labelled images by what they show: recognised as their class, useful to learn from, and not copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.core.errors import DataError
from genlab.evaluation.classifier import (
    CopyCheck,
    DigitsClassifier,
    Labelled,
    Recipe,
    SmallConvNet,
    Usefulness,
    nearest_distances,
    usefulness,
)
from genlab.evaluation.neighbours import squared_radii
from genlab.evaluation.pairs import clouds

_HELD_OUT = 5
_LARGEST = 64  # pixels; above, the small network takes hours and pixels as float32 features many GB


def class_accuracy(real: Tensor, real_labels: Tensor, generated: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Share of generated digits that a classifier trained on the real ones recognises as asked, and that per class [K].

    Args:
        real, generated: pixels as features, [n, 3 R R] in [0, 1].
    """
    judge = DigitsClassifier().fit(_images(real), real_labels)
    return judge.class_accuracy(_images(generated), labels)


def cas(
    real: Tensor, real_labels: Tensor, generated: Tensor, labels: Tensor, pixels: bool, recipe: Recipe, seed: int = 0
) -> tuple[Usefulness, int]:
    """The classification accuracy score with its companions, and how many real images they were tested on.

    Every fifth real image, by seed, is only tested on; so the reference, trained on the others, never saw it either.

    Args:
        real, generated: features [n,d].
        pixels: they are pixels, [n, 3 R R] in [0, 1]: a small convolutional network is trained from scratch. Otherwise
            a linear probe is trained on them: a proxy, since the extractor has seen real images.

    Raises:
        DataError: too few real images, or images too large for the small network.
    """
    test = torch.zeros(len(real), dtype=torch.bool)
    test[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[::_HELD_OUT]] = True
    if not 0 < int(test.sum()) < len(real):
        raise DataError(f"needs more than {len(real)} real images, to hold some out")
    device, classes = real.device, int(torch.maximum(real_labels.max(), labels.max())) + 1
    if pixels and real.shape[1] > 3 * _LARGEST**2:
        raise DataError(f"trains on images up to {_LARGEST} pixels wide; on larger ones ask for cas@inception, a probe")
    inputs, samples = (_images(part).to(device) if pixels else part for part in (real, generated))
    width = real.shape[1]

    def build() -> nn.Module:
        probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        return SmallConvNet(classes) if pixels else probe

    def rows(chosen: Tensor) -> Labelled:
        return Labelled(inputs[chosen.to(device)], real_labels[chosen].to(device))

    found = usefulness(build, Labelled(samples, labels.to(device)), rows(~test), rows(test), recipe, seed)
    return found, int(test.sum())


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
