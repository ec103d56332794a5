"""The metrics of an evaluation: what each needs of the pass over the images, and which way is better."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple

from genlab.core.errors import ConfigError


class Need(Enum):
    """What the pass over the images must collect."""

    MOMENTS = auto()
    """Mean and covariance of the feature layer."""
    SPATIAL = auto()
    """Mean and covariance of the spatial layer."""
    LOGITS = auto()
    """Class probabilities by split."""
    FEATURES = auto()
    """All features, in memory."""
    PAIRS = auto()
    """Each image beside its reconstruction."""


@dataclass(frozen=True)
class Metric:
    """One metric, whatever it is computed on."""

    need: Need
    better: Literal["lower", "higher", "neither"]
    meaning: str


METRICS = {
    "fid": Metric(Need.MOMENTS, "lower", "Frechet distance of Gaussians fitted to the features"),
    "sfid": Metric(Need.SPATIAL, "lower", "the same on a spatial layer"),
    "is": Metric(Need.LOGITS, "higher", "Inception score: sure of each image, varied over all"),
    "kid": Metric(Need.FEATURES, "lower", "kernel distance, unbiased, so it may be negative"),
    "precision": Metric(Need.FEATURES, "higher", "share of samples inside the manifold of real images"),
    "recall": Metric(Need.FEATURES, "higher", "share of real images inside the manifold of samples"),
    "density": Metric(Need.FEATURES, "higher", "real neighbourhoods around a sample; may exceed 1"),
    "coverage": Metric(Need.FEATURES, "higher", "share of real neighbourhoods that hold a sample"),
    "fid_infinity": Metric(Need.FEATURES, "lower", "the Frechet distance extrapolated to endless samples"),
    "intra_class_fid": Metric(Need.FEATURES, "lower", "Frechet distance within each class, averaged"),
    "mind": Metric(Need.FEATURES, "lower", "mean one-dimensional Wasserstein distance over directions"),
    "sliced_wasserstein": Metric(Need.FEATURES, "lower", "sliced Wasserstein distance, approximated from moments"),
    "cmmd": Metric(Need.FEATURES, "lower", "Gaussian-kernel distance of normalised CLIP embeddings"),
    "vendi": Metric(Need.FEATURES, "higher", "effective number of different samples"),
    "authenticity": Metric(Need.FEATURES, "higher", "percentage of samples that are no near-copies"),
    "class_accuracy": Metric(Need.FEATURES, "higher", "share recognised as their class by an independent classifier"),
    "copies": Metric(Need.FEATURES, "lower", "share nearer to a training image than all but 1 % of real images are"),
    "cas": Metric(Need.FEATURES, "higher", "accuracy on real images of a classifier trained on samples alone"),
    "rigid": Metric(Need.FEATURES, "neither", "how well RIGID tells samples from real images (AUROC); 0.5: not at all"),
}

TOKENIZER_METRICS = {
    "rfid": Metric(Need.MOMENTS, "lower", "Frechet distance of reconstructions from their originals, or as named"),
    "psnr": Metric(Need.PAIRS, "higher", "peak signal-to-noise ratio in dB, averaged over images"),
    "ssim": Metric(Need.PAIRS, "higher", "structural similarity, Gaussian window of sigma 1.5"),
    "lpips": Metric(Need.PAIRS, "lower", "perceptual distance of reconstruction and original"),
    "codebook_usage": Metric(Need.PAIRS, "higher", "share of codebook entries used at least once"),
    "perplexity": Metric(Need.PAIRS, "higher", "effective number of codebook entries: exp of their entropy"),
    "bits_per_image": Metric(
        Need.PAIRS, "neither", "bits of an image's codes: their number times log2 of the vocabulary"
    ),
}

KNOWN = METRICS | TOKENIZER_METRICS
"""All metrics that a report may hold."""


class Request(NamedTuple):
    """A metric on an extractor."""

    metric: str
    extractor: str


def parse_requests(words: Iterable[str], extractor: str) -> tuple[Request, ...]:
    """ "fid" or "precision@pixels" -> requests, the plain ones on `extractor`, without duplicates.

    RIGID has encoders of its own: EfficientNet-Lite0 where `extractor` is that, else DINOv2.

    Raises:
        ConfigError: an unknown metric, or none at all.
    """
    requests = []
    for word in words:
        metric, _, other = word.strip().partition("@")
        if metric not in METRICS:
            near = difflib.get_close_matches(metric, METRICS, n=1)
            raise ConfigError(
                f"there is no metric {metric!r}{f'; did you mean {near[0]}?' if near else ''} ({', '.join(METRICS)})"
            )
        judge = other or extractor
        if metric == "rigid":
            judge = f"rigid_{other or ('efflite0' if extractor == 'efflite0' else 'dinov2')}"
        requests.append(Request(metric, judge))
    if not requests:
        raise ConfigError("name at least one metric, such as --metrics fid,is")
    return tuple(dict.fromkeys(requests))
