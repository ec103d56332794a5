"""Comparing scores with those a recipe expects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from genlab.evaluation.intervals import RESEED
from genlab.evaluation.protocols import ExpectedScore
from genlab.evaluation.scores import Score

Verdict: TypeAlias = Literal["ok", "within noise", "off", "missing"]


@dataclass(frozen=True)
class Check:
    """One expected score, beside what was found."""

    expected: ExpectedScore
    found: float | None
    verdict: Verdict

    @property
    def text(self) -> str:
        """ "fid 2.31 (expected 2.27, DiT table 4): off by 1.8 %", for people."""
        name, value, source = self.expected.metric, self.expected.value, self.expected.source
        if self.found is None:
            return f"{name}: expected {value:g} ({source}), not computed"
        share = abs(self.found - value) / abs(value) if value else float("inf")
        verdict = f"off by {100 * share:.1f} %" if self.verdict == "off" else self.verdict
        return f"{name} {self.found:.4g} (expected {value:g}, {source}): {verdict}"


def check(scores: Sequence[Score], expected: Iterable[ExpectedScore], protocol: str) -> list[Check]:
    """The expectations that were made for `protocol`, each with its verdict.

    "within noise": the expected value lies in the score's own 95 % interval, or closer than other seeds move it;
    "ok": within the expectation's tolerance; "off": farther away, better or worse: neither was reproduced.
    """
    found = {score.name: score for score in scores}
    return [_judge(item, found.get(item.metric)) for item in expected if item.protocol == protocol]


def _judge(expected: ExpectedScore, score: Score | None) -> Check:
    if score is None:
        return Check(expected, None, "missing")
    gap = abs(score.value - expected.value)
    inside = score.interval is not None and score.interval[0] <= expected.value <= score.interval[1]
    if inside or gap <= RESEED * abs(expected.value):
        return Check(expected, score.value, "within noise")
    return Check(expected, score.value, "ok" if gap <= expected.tolerance * abs(expected.value) else "off")
