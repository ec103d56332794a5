"""From two collected sets to scores: every metric asked for, each with its interval and its circumstances.

A metric that cannot be computed (too few images, no labels) becomes a warning; the others are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genlab.core.errors import ConfigError, DataError
from genlab.evaluation import pixels
from genlab.evaluation.classifier import Recipe
from genlab.evaluation.collected import Collected
from genlab.evaluation.extractors import Extractor, metric_name
from genlab.evaluation.frechet import frechet_distance, frechet_infinity, intra_class_frechet
from genlab.evaluation.half_precision import half_precision_recall
from genlab.evaluation.intervals import Z, auroc_interval, frechet_halfwidth, share_interval
from genlab.evaluation.joint import pair_scores
from genlab.evaluation.judges import cas, class_accuracy, copies
from genlab.evaluation.kernel import KernelDistance, cmmd, kid
from genlab.evaluation.metrics import METRICS
from genlab.evaluation.neighbours import ManifoldScores, authenticity, manifold_scores
from genlab.evaluation.rigid import detection
from genlab.evaluation.slices import mind, sliced_wasserstein
from genlab.evaluation.vendi import vendi_score

_SUBSETS, _SUBSET_SIZE = 100, 1000
_SWEEP = 3  # all pairs at once are quicker than the subsets one by one up to this many times the subsets' pairs


@dataclass(frozen=True)
class Rules:
    """What judges differ in, besides the network."""

    k: int = 3
    strict: bool = False
    """Neighbourhoods are open balls (prdc) rather than closed ones (ADM, torch-fidelity)."""
    half: bool = False
    """Precision and recall from float16 distances, as ADM's TensorFlow graph has them."""


@dataclass(frozen=True)
class Score:
    """One number of the report."""

    name: str
    """The metric's name on its extractor: `fid`, `fd_efflite0`."""
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    """95 %, over draws of samples; the reference is fixed."""
    detail: dict[str, Any] = field(default_factory=dict)
    per_class: dict[int, float] | None = None


@dataclass
class Comparison:
    """Generated against reference images, on one extractor."""

    extractor: Extractor
    generated: Collected
    reference: Collected
    rules: Rules
    digits: bool
    """The reference is scikit-learn's digits, for which an independent classifier exists."""
    _manifold: ManifoldScores | None = None
    _kid: KernelDistance | None = None

    def pair(self) -> tuple[Tensor, Tensor]:
        """All features: reference [n,d], generated [m,d]. Raises DataError where only statistics are there."""
        layer = self.extractor.feature_layer
        device = next(self.extractor.parameters(), torch.empty(0)).device
        return _layer(self.reference, layer).rows.to(device), _layer(self.generated, layer).rows.to(device)

    @property
    def subset_size(self) -> int:
        """Images in each of KID's subsets: 1000, or as many as there are."""
        return min(_SUBSET_SIZE, *map(len, self.pair()))

    def sizes(self) -> dict[str, Any]:
        """n and m, which neighbourhood scores depend on strongly."""
        x, y = self.pair()
        return {"k": self.rules.k, "n_reference": len(x), "m_generated": len(y), "strict": self.rules.strict}

    def neighbourhoods(self) -> ManifoldScores:
        """Precision, recall, density, coverage."""
        if self._manifold is None:
            x, y = self.pair()
            self._manifold = manifold_scores(x, y, self.rules.k, self.rules.strict)
        return self._manifold

    def kid(self) -> KernelDistance:
        """KID with torch-fidelity's subsets; neighbourhoods come from the same sweep where one is worth while."""
        if self._kid is None:
            x, y = self.pair()
            if len(x) * len(y) <= _SWEEP * _SUBSETS * self.subset_size**2:
                found = pair_scores(x, y, self.rules.k, self.rules.strict, _SUBSETS, self.subset_size, fast=False)
                self._kid, self._manifold = found.kid, found.manifold
            else:
                self._kid = kid(y, x, _SUBSETS, self.subset_size)
        return self._kid


def _layer(side: Collected, name: str | None) -> Any:
    if name is None or name not in side.layers:
        raise DataError("the reference or the extractor has no such feature layer")
    return side.layers[name]


def compute(comparison: Comparison, metrics: Sequence[str]) -> tuple[list[Score], list[str]]:
    """Scores in the order of `metrics`, and warnings for those that cannot be given."""
    scores: dict[str, Score] = {}
    warnings = [*comparison.generated.problems]
    for metric in sorted(metrics, key=lambda metric: metric != "kid"):  # first: its sweep gives the neighbourhoods too
        try:
            if metric in _MANIFOLD:
                scores[metric] = _manifold(comparison, metric)
            else:
                scores[metric] = _COMPUTE[metric](comparison)
        except (DataError, ConfigError) as error:
            warnings.append(f"{metric_name(metric, comparison.extractor)}: not computed: {error}")
    return [scores[metric] for metric in metrics if metric in scores], list(dict.fromkeys(warnings))


def _score(comparison: Comparison, metric: str, value: float, **more: Any) -> Score:
    return Score(metric_name(metric, comparison.extractor), metric, value, **more)


def _frechet(comparison: Comparison, metric: str, layer: str | None) -> Score:
    ours, theirs = _layer(comparison.generated, layer), _layer(comparison.reference, layer)
    value = frechet_distance(theirs.gaussian, ours.gaussian)
    half = frechet_halfwidth(theirs.gaussian, ours.features, ours.count) if ours.features is not None else None
    interval = (max(value - half, 0.0), value + half) if half is not None else None
    detail = {
        "m_generated": ours.count,
        "n_reference": None if theirs.fitted else theirs.count,
        "dimensions": len(ours.gaussian.mean),
    }
    return _score(comparison, metric, value, interval=interval, detail=detail)


def _inception(comparison: Comparison) -> Score:
    stream = comparison.generated.inception
    if stream is None:
        raise DataError("this extractor gives no class logits, or there were fewer images than splits")
    found = stream.score()
    splits = len(found.splits)
    detail = {"splits": splits, "std_over_splits": found.std}
    half = Z * found.std / splits**0.5 if found.std is not None and splits > 1 else None
    interval = (found.mean - half, found.mean + half) if half is not None else None
    return _score(comparison, "is", found.mean, interval=interval, detail=detail)


_MANIFOLD = ("precision", "recall", "density", "coverage")


def _manifold(comparison: Comparison, metric: str) -> Score:
    detail = comparison.sizes()
    if comparison.rules.half and metric in ("precision", "recall"):
        precision, recall = half_precision_recall(*comparison.pair(), comparison.rules.k)
        value, detail["distances"] = (precision if metric == "precision" else recall), "float16 (ADM)"
    else:
        value = getattr(comparison.neighbourhoods(), metric)
    size = detail["n_reference"] if metric in ("recall", "coverage") else detail["m_generated"]
    interval = share_interval(value, size) if metric != "density" else None
    return _score(comparison, metric, value, interval=interval, detail=detail)


def _kid(comparison: Comparison) -> Score:
    found = comparison.kid()
    detail = {"subsets": _SUBSETS, "subset_size": comparison.subset_size, "std_over_subsets": found.std}
    return _score(comparison, "kid", found.mean, detail=detail)


def _infinity(comparison: Comparison) -> Score:
    value, sizes, _ = frechet_infinity(*comparison.pair())
    return _score(comparison, "fid_infinity", value, detail={"subset_sizes": [int(sizes[0]), int(sizes[-1])]})


def _labels(comparison: Comparison) -> tuple[Tensor, Tensor]:
    ours, theirs = comparison.generated.labels, comparison.reference.labels
    if ours is None or theirs is None:
        raise DataError("needs the class of every image, generated and real")
    layer = comparison.extractor.feature_layer
    return theirs[:: _layer(comparison.reference, layer).stride], ours


def _intra_class(comparison: Comparison) -> Score:
    (x_label, y_label), (x, y) = _labels(comparison), comparison.pair()
    found = intra_class_frechet(x, x_label, y, y_label)
    value = sum(found.values()) / len(found)
    return _score(comparison, "intra_class_fid", value, detail={"classes": len(found)}, per_class=found)


def _class_accuracy(comparison: Comparison) -> Score:
    if not comparison.digits:
        raise DataError("an independent classifier exists for the digits only")
    (x_label, y_label), (x, y) = _labels(comparison), comparison.pair()
    share, per_class = class_accuracy(x, x_label, y, y_label)
    detail = {"classifier": "support-vector machine trained on the real digits", "m_generated": len(y)}
    interval = share_interval(share, len(y))
    table = {label: float(value) for label, value in enumerate(per_class.tolist())}
    return Score("class_accuracy", "class_accuracy", share, interval, detail, table)


def _cas(comparison: Comparison) -> Score:
    (x_label, y_label), (x, y) = _labels(comparison), comparison.pair()
    on_pixels, recipe = comparison.extractor.family == pixels.NAME, Recipe.cosine()
    begun = time.perf_counter()
    found, tested = cas(x, x_label, y, y_label, on_pixels, recipe)
    share = found.cas.top1 / 100
    detail = {
        "classifier": "small convolutional network, from scratch" if on_pixels else "linear probe: a proxy",
        "epochs": len(recipe.lr),
        "tested_on": tested,
        "real_data": found.real.top1 / 100,
        "ratio": found.ratio,
        "gan_test": found.gan_test.top1 / 100,
        "with_real_data": found.augmented.top1 / 100,
        "top5": found.cas.top5 / 100,
        "seconds": time.perf_counter() - begun,
    }
    name = "cas" if on_pixels else f"cas_probe_{comparison.extractor.name}"
    table = {label: float(value) for label, value in enumerate(found.cas.per_class.tolist())}
    return Score(name, "cas", share, share_interval(share, tested), detail, table)


def _rigid(comparison: Comparison) -> Score:
    if comparison.extractor.family != "rigid":
        raise DataError("has encoders of its own: ask for rigid@dinov2 or rigid@efflite0")
    real, fake = (1 - movement.double().flatten() for movement in comparison.pair())
    found = detection(real, fake)
    detail = {
        "inverted": found.inverted,
        "fpr_at_tpr95": found.fpr_at_tpr95,
        "detected_at_5_percent": found.fake_detected,
        "average_precision": found.ap_fake_positive,
        "median_score_real": real.median().item(),
        "median_score_generated": fake.median().item(),
    }
    name = comparison.extractor.name
    interval = auroc_interval(found.auroc, len(real), len(fake))
    return Score("rigid" if name == "rigid_dinov2" else name, "rigid", found.auroc, interval, detail)


def _copies(comparison: Comparison) -> Score:
    check = copies(*comparison.pair())
    detail = {
        "median_distance_generated": check.generated.median().item(),
        "median_distance_real": check.heldout.median().item(),
        "ratio": check.ratio,
        "exact_copies": int((check.generated == 0).sum()),
        "distances": "to the nearest training image; real ones to the nearest other real one",
    }
    return _score(
        comparison,
        "copies",
        check.suspicious,
        interval=share_interval(check.suspicious, len(check.generated)),
        detail=detail,
    )


def _plain(metric: str, function: Callable[[Tensor, Tensor], float]) -> Callable[[Comparison], Score]:
    def compute(comparison: Comparison) -> Score:
        return _score(comparison, metric, function(*comparison.pair()))

    return compute


_COMPUTE: dict[str, Callable[[Comparison], Score]] = {
    "fid": lambda comparison: _frechet(comparison, "fid", comparison.extractor.feature_layer),
    "sfid": lambda comparison: _frechet(comparison, "sfid", comparison.extractor.spatial_layer),
    "is": _inception,
    "kid": _kid,
    "fid_infinity": _infinity,
    "intra_class_fid": _intra_class,
    "class_accuracy": _class_accuracy,
    "copies": _copies,
    "cas": _cas,
    "rigid": _rigid,
    "mind": _plain("mind", mind),
    "sliced_wasserstein": _plain("sliced_wasserstein", sliced_wasserstein),
    "cmmd": _plain("cmmd", cmmd),
    "vendi": _plain("vendi", lambda x, y: vendi_score(y)),
    "authenticity": _plain("authenticity", authenticity),
}
assert set(_COMPUTE) | set(_MANIFOLD) == set(METRICS), "every metric of the table is computed here"
