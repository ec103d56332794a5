"""Scores over repeated seeds: what another draw of as many samples would do, measured instead of estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from genlab.evaluation.scores import Score

_SHARES = ("precision", "recall", "coverage", "class_accuracy", "copies", "cas", "rigid")  # in [0, 1]
_SIGNED = ("kid",)  # may be below 0; all others may not


def over_seeds(runs: Sequence[Sequence[Score]], seeds: Sequence[int]) -> list[Score]:
    """The mean of each score over the runs that `seeds` gave, with the 95 % interval of that mean (Student's t).

    The estimate that the first seed alone gives stays beside it, as `interval_one_seed`; scores that are missing in a
    run are left out.
    """
    if len(runs) == 1:
        return list(runs[0])
    by_name = [{score.name: score for score in run} for run in runs]
    names = [score.name for score in runs[0] if all(score.name in run for run in by_name)]
    return [_mean([run[name] for run in by_name], seeds) for name in names]


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of a few independent values."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _mean(scores: Sequence[Score], seeds: Sequence[int]) -> Score:
    values = [score.value for score in scores]
    classes = [score.per_class for score in scores if score.per_class is not None]
    per_class = (
        {label: float(np.mean([table[label] for table in classes])) for label in classes[0]} if classes else None
    )
    first = scores[0]
    detail = {
        "std_over_seeds": float(np.std(values, ddof=1)),
        **first.detail,
        "seeds": list(seeds),
        "values": values,
        "interval_one_seed": list(first.interval) if first.interval else None,
    }
    low, high = t_interval(values)
    if first.metric not in _SIGNED:
        low = max(low, 0.0)
    if first.metric in _SHARES:
        high = min(high, 1.0)
    return replace(first, value=float(np.mean(values)), interval=(low, high), detail=detail, per_class=per_class)
