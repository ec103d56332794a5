"""Judging samples with classifiers: classification accuracy scores, reference classifiers and a check for copies.

Classification accuracy score (CAS; Ravuri & Vinyals 2019), also GAN-train (Shmelkov et al. 2018): a classifier
trained from scratch on generated images, tested on real ones; it falls when the generator lacks variety. GAN-test is
the reverse and falls when samples or labels are poor. Both mean something only beside the same classifier trained on
real data. Real test images choose nothing: no best epoch, no tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.contracts import to_float
from genlab.core.errors import DataError
from genlab.evaluation.extractors.base import check_images


class Labelled(NamedTuple):
    """Inputs [N, ...], uint8 images or float features, with labels int64 [N]."""

    inputs: Tensor
    labels: Tensor


class Accuracy(NamedTuple):
    """Accuracies in percent."""

    top1: float
    top5: float
    """NaN where there are fewer than five classes."""
    per_class: Tensor
    """float64 [K], shares 0..1; NaN for a class without samples."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: momentum SGD on the cross entropy, the same for every training set."""

    lr: tuple[float, ...]
    """Learning rate of each epoch."""
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4

    @classmethod
    def cosine(cls, epochs: int = 30, peak: float = 0.05, batch: int = 128) -> Self:
        """A cosine decay after one epoch of warm-up at a tenth of the peak."""
        decay = [0.5 * peak * (1.0 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
        return cls(lr=(0.1 * peak, *decay[1:]), batch=batch)


@dataclass(frozen=True)
class Usefulness:
    """What generated data are worth for training and testing a classifier; every accuracy is on data not trained on."""

    cas: Accuracy
    """Trained on generated, tested on real (GAN-train)."""
    real: Accuracy
    """Trained on real, tested on real: the reference."""
    gan_test: Accuracy
    """Trained on real, tested on generated."""
    augmented: Accuracy
    """Trained on the union for as many epochs, so with more steps (naive augmentation), tested on real."""

    @property
    def ratio(self) -> float:
        """CAS as a share of the accuracy that real data give."""
        return self.cas.top1 / self.real.top1 if self.real.top1 else math.nan


def usefulness(
    build: Callable[[], nn.Module],
    generated: Labelled,
    real_train: Labelled,
    real_test: Labelled,
    recipe: Recipe,
    seed: int = 0,
) -> Usefulness:
    """The whole protocol: three classifiers of equal initial weights, trained on generated, real and both.

    Args:
        build: makes the untrained classifier, inputs -> logits [B, K]; pretraining would leak real data.
        generated: labels are those that were requested; with the label histogram of `real_train`, or scores mislead.
        recipe: learning rates, batch size and regularisation.
        seed: of initial weights and data order. Repeat with 2-3 seeds: small differences are noise.
    """

    def trained(data: Labelled) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classifier = build().to(data.inputs.device)
        return fit(classifier, data, epoch_orders(len(data.labels), len(recipe.lr), seed), recipe)

    on_generated, on_real = trained(generated), trained(real_train)
    on_both = trained(first_of_each(generated, real_train))
    return Usefulness(
        cas=assess(on_generated, real_test),
        real=assess(on_real, real_test),
        gan_test=assess(on_real, generated),
        augmented=assess(on_both, real_test),
    )


def fit(classifier: nn.Module, data: Labelled, order: Tensor, recipe: Recipe) -> nn.Module:
    """Trains `classifier` in place; rows of `data` come in the order [epochs, n], cut into batches.

    Raises:
        DataError: an order for another number of epochs than the recipe has learning rates.
    """
    if len(order) != len(recipe.lr):
        raise DataError(f"a data order of {len(order)} epochs for a recipe of {len(recipe.lr)}")
    optimizer = torch.optim.SGD(
        classifier.parameters(), lr=recipe.lr[0], momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    classifier.train()
    for lr, rows in zip(recipe.lr, order):
        optimizer.param_groups[0]["lr"] = lr
        for batch in rows.split(recipe.batch):
            optimizer.zero_grad()
            F.cross_entropy(classifier(_as_float(data.inputs[batch])), data.labels[batch]).backward()
            optimizer.step()
    return classifier.eval()


@torch.no_grad()
def predict(classifier: nn.Module, inputs: Tensor, batch: int = 512) -> Tensor:
    """Logits [N, K] of uint8 images or float features."""
    return torch.cat([classifier(_as_float(part)) for part in inputs.split(batch)])


def assess(classifier: nn.Module, data: Labelled) -> Accuracy:
    """The accuracy of a trained classifier."""
    return accuracy(predict(classifier, data.inputs), data.labels)


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Logits [N, K] and labels [N] -> top-1, top-5 and per-class accuracy."""
    classes = logits.shape[1]
    hit = (logits.argmax(1) == labels).double()
    top5 = math.nan
    if classes >= 5:
        top5 = 100.0 * (logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean().item()
    return Accuracy(100.0 * hit.mean().item(), top5, _per_class(hit, labels, classes))


def epoch_orders(count: int, epochs: int, seed: int) -> Tensor:
    """Random orders of `count` rows, int64 [epochs, count], from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(count, generator=generator) for _ in range(epochs)])


def first_of_each(one: Labelled, other: Labelled, count: int | None = None) -> Labelled:
    """The first `count` samples of `one` (all, without it) followed by the first `count` of `other`."""
    return Labelled(
        torch.cat([one.inputs[:count], other.inputs[:count]]), torch.cat([one.labels[:count], other.labels[:count]])
    )


class SmallConvNet(nn.Sequential):
    """A classifier for images [B, 3, R, R] of 8 pixels and more, 0.1 M parameters: three stages and a mean."""

    def __init__(self, classes: int, width: int = 32):
        channels = (3, width, 2 * width, 2 * width)
        stages = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(channels, channels[1:], (1, 2, 2))
        ]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


class DigitsClassifier:
    """A support-vector machine for 8x8 digits, the reference judge of the digits recipes (about 99 % on held-out ones).

    Images of any size are reduced to grey 8x8 levels 0..16, the domain of scikit-learn's digits, by area averaging;
    gamma and C are scikit-learn's usual ones for this data.
    """

    def __init__(self) -> None:
        from sklearn.svm import SVC

        self._machine = SVC(kernel="rbf", gamma=0.001, C=10.0)

    def fit(self, images: Tensor, labels: Tensor) -> Self:
        """Learns from real training images, uint8 [N, 3, R, R], and their labels [N]."""
        self._machine.fit(_digit_levels(images), labels.cpu().numpy())
        return self

    def predict(self, images: Tensor) -> Tensor:
        """Labels int64 [N] of uint8 images [N, 3, R, R]."""
        return torch.from_numpy(np.asarray(self._machine.predict(_digit_levels(images)), dtype=np.int64))

    def class_accuracy(self, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """The share 0..1 of images recognised as what was requested, and the same per class, float64 [K]."""
        labels = labels.cpu()
        hit = (self.predict(images) == labels).double()
        return hit.mean().item(), _per_class(hit, labels, len(self._machine.classes_))


@dataclass(frozen=True)
class CopyCheck:
    """Distances to the nearest training image, of generated images and, for comparison, of held-out real ones."""

    generated: Tensor
    heldout: Tensor

    @property
    def suspicious(self) -> float:
        """Share of generated images nearer to a training image than all but 1 % of held-out ones are; about 0.01 for
        a generator that does not copy."""
        return (self.generated < torch.quantile(self.heldout, 0.01)).double().mean().item()

    @property
    def ratio(self) -> float:
        """Median distance of generated over that of held-out; well below 1 speaks of memorised images."""
        return (self.generated.median() / self.heldout.median()).item()


def copy_check(generated: Tensor, training: Tensor, heldout: Tensor) -> CopyCheck:
    """Compares three sets in pixel or feature space, [N, ...] each."""
    return CopyCheck(nearest_distances(generated, training), nearest_distances(heldout, training))


def nearest_distances(queries: Tensor, references: Tensor, tile: int = 2048) -> Tensor:
    """Euclidean distance of each query [N, ...] to its nearest reference [M, ...], float64 [N], in tiles.

    The nearest reference is found by matrix products, whose rounding would hide an exact copy; the distance to it is
    then computed from the difference, so that a copy has the distance 0.
    """
    if len(references) == 0 or queries.shape[1:] != references.shape[1:]:
        raise DataError(f"no distances between sets of shapes {tuple(queries.shape)} and {tuple(references.shape)}")
    known = references.flatten(1)
    nearest = []
    for part in (rows.double() for rows in queries.flatten(1).split(tile)):
        best = torch.full((len(part),), math.inf, dtype=torch.float64, device=part.device)
        which = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        for start in range(0, len(known), tile):
            value, index = torch.cdist(part, known[start : start + tile].double()).min(1)
            which = torch.where(value < best, index + start, which)
            best = torch.minimum(best, value)
        nearest.append((part - known[which].double()).norm(dim=1))
    return torch.cat(nearest) if nearest else torch.zeros(0, dtype=torch.float64, device=known.device)


def _as_float(inputs: Tensor) -> Tensor:
    return to_float(inputs) if inputs.dtype == torch.uint8 else inputs


def _digit_levels(images: Tensor) -> np.ndarray:
    check_images(images)
    grey = images.float().mean(1, keepdim=True)
    levels = F.adaptive_avg_pool2d(grey, 8).flatten(1).mul_(16.0 / 255.0)  # [N, 64]
    return levels.cpu().numpy()


def _per_class(hit: Tensor, labels: Tensor, classes: int) -> Tensor:
    count = torch.bincount(labels, minlength=classes).double()
    return torch.bincount(labels, weights=hit, minlength=classes) / count  # 0 / 0 is NaN: no sample, no accuracy
