"""How detectable samples are: RIGID (He, Chen & Ho 2024) and the measures of a detector.

Features of real images move less under a little noise than those of generated ones. The score of an image is the
cosine between its features and those of its noisy copy; low scores speak of a generated image. An AUROC near 0.5 is
what a generator wants. The direction is not stable for every generator and noise level, so it is never flipped
silently: `Detection.inverted` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.extractors.base import NormalisingExtractor, check_images
from samplers.noise import SampleRng

Encode: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels [B, 3, R, R] in [0, 1], or normalised inputs, -> features [B, d], in full float32 (bf16 is useless here)."""
Space: TypeAlias = Literal["normalized", "pixel", "pixel_clamped"]


@dataclass(frozen=True)
class RigidSettings:
    """The published defaults."""

    strength: float = 0.05
    """Standard deviation of the noise."""
    space: Space = "normalized"
    """Where the noise is added: after normalisation (the authors'), or to pixels in [0, 1], where the same strength
    is over four times stronger, clamped to [0, 1] or not."""
    draws: int = 1
    """Noisy copies whose similarities are averaged; 4 to 8 reduce the variance."""
    blur: float = 0.0
    """Standard deviation in pixels of a 5x5 Gaussian blur as a second perturbation; the lower similarity counts
    (MINDER; Tsai et al. 2024). 0 leaves it out."""


def rigid_scores(
    extractor: NormalisingExtractor,
    images: Tensor,
    identities: Tensor,
    settings: RigidSettings | None = None,
    seed: int = 0,
) -> Tensor:
    """Scores of uint8 images [B, 3, H, W], float64 [B], higher = more like a real image.

    Args:
        extractor: `load_extractor("dinov2_rigid")` is the paper's; strict precision.
        identities: int64 [B], a number per image. Its noise depends on it and on `seed` alone, so scores do not
            change with batch size or order.
    """
    check_images(images)
    settings = settings or RigidSettings()
    if extractor.precision != "strict":
        raise DataError(f"RIGID's differences drown in {extractor.precision} arithmetic: load the extractor as strict")
    device = next(extractor.network.parameters()).device
    pixels = extractor.pixels(images.to(device))
    rng = SampleRng(seed, identities.to(device))
    noise = torch.stack([rng.normal(*pixels.shape[1:]) for _ in range(settings.draws)])

    def encode(normalised: Tensor) -> Tensor:
        return extractor.embed(normalised)[extractor.feature_layer]

    return score_with_noise(encode, extractor.normalise, pixels, noise, settings)


def score_with_noise(
    encode: Encode, normalise: Encode, pixels: Tensor, noise: Tensor, settings: RigidSettings
) -> Tensor:
    """RIGID's score from given noise.

    Args:
        encode: normalised inputs -> features.
        normalise: pixels in [0, 1] -> normalised inputs.
        pixels: [B, 3, R, R] in [0, 1].
        noise: standard normal [draws, B, 3, R, R].

    Returns:
        float64 [B].
    """
    features = encode(normalise(pixels))
    score = noise_similarities(encode, normalise, pixels, noise, settings, features).mean(0)
    if settings.blur:
        blurred = similarity(features, encode(normalise(gaussian_blur(pixels, settings.blur))))
        score = torch.minimum(score, blurred)
    return score


def noise_similarities(
    encode: Encode, normalise: Encode, pixels: Tensor, noise: Tensor, settings: RigidSettings, features: Tensor
) -> Tensor:
    """Similarity of each noisy copy to its original's `features` [B, d]: float64 [draws, B]."""
    copies = (perturb(pixels, settings.strength * draw, settings.space, normalise) for draw in noise)
    return torch.stack([similarity(features, encode(copy)) for copy in copies])


def perturb(pixels: Tensor, disturbance: Tensor, space: Space, normalise: Encode) -> Tensor:
    """Pixels [B, 3, R, R] in [0, 1] and scaled noise of that shape -> normalised, noisy inputs."""
    if space == "normalized":
        return normalise(pixels) + disturbance
    noisy = pixels + disturbance
    return normalise(noisy.clamp(0.0, 1.0) if space == "pixel_clamped" else noisy)


def similarity(features: Tensor, others: Tensor) -> Tensor:
    """Cosine of feature rows [B, d], float64 [B], as 1 - |u - v|^2 / 2 of unit vectors.

    1 - cosine is only about 1e-4 here; this form keeps it to 1e-5 relative where the plain cosine in float32 is off by
    1e-3.
    """
    u, v = (rows.double() / rows.double().norm(dim=-1, keepdim=True) for rows in (features, others))
    return 1.0 - 0.5 * (u - v).square().sum(-1)


def gaussian_blur(pixels: Tensor, sigma: float, kernel: int = 5) -> Tensor:
    """A Gaussian blur of [B, 3, R, R] with reflected borders."""
    from torchvision.transforms.functional import gaussian_blur as blur

    blurred: Tensor = blur(pixels, [kernel, kernel], [sigma, sigma])
    return blurred


@dataclass(frozen=True)
class Detection:
    """How well scores separate real images (higher scores) from generated ones."""

    auroc: float
    fpr_at_tpr95: float
    """Share of fakes taken for real where at least 95 % of real images are."""
    ap_real_positive: float
    ap_fake_positive: float
    """Average precision with real, or with generated, images as the positive class."""
    threshold: float
    """The `percentile` of real scores: images below it are called generated."""
    fake_detected: float
    real_rejected: float
    accuracy: float
    """Mean of the share of real images kept and that of fakes detected."""

    @property
    def inverted(self) -> bool:
        """Generated images score higher than real ones: the premise does not hold here."""
        return self.auroc < 0.5


def detection(real: Tensor, fake: Tensor, percentile: float = 5.0) -> Detection:
    """Measures of the rule "generated if score < threshold" for scores [n] of real and [m] of generated images.

    Raises:
        DataError: an empty set, or scores that are not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    kept, found = (scores.detach().cpu().numpy() for scores in (real, fake))
    if not len(kept) or not len(found) or not np.isfinite(kept).all() or not np.isfinite(found).all():
        raise DataError(f"detection needs finite scores of both sets, got {len(kept)} real and {len(found)} generated")
    scores = np.concatenate([kept, found])
    is_real = np.concatenate([np.ones(len(kept), dtype=int), np.zeros(len(found), dtype=int)])
    false_positive, true_positive, _ = roc_curve(is_real, scores)
    threshold = np.percentile(kept.astype(np.float64), percentile)
    fake_detected, real_rejected = float((found < threshold).mean()), float((kept < threshold).mean())
    return Detection(
        auroc=float(roc_auc_score(is_real, scores)),
        fpr_at_tpr95=float(false_positive[np.argmax(true_positive >= 0.95)]),
        ap_real_positive=float(average_precision_score(is_real, scores)),
        ap_fake_positive=float(average_precision_score(1 - is_real, -scores)),
        threshold=float(threshold),
        fake_detected=fake_detected,
        real_rejected=real_rejected,
        accuracy=0.5 * (1.0 - real_rejected + fake_detected),
    )
