"""From a finished evaluation to its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from genlab import config as configs
from genlab.commands.targets import Subject
from genlab.evaluation.expected import Check
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.metrics import METRICS, Need, Request
from genlab.evaluation.protocols import ExpectedScore, Protocol
from genlab.evaluation.provenance import environment, label_histogram
from genlab.evaluation.references import Reference
from genlab.evaluation.report import Report
from genlab.evaluation.scores import Score
from genlab.evaluation.session import Pass

_PUBLISHED_SAMPLES = 50_000


@dataclass(frozen=True)
class Run:
    """One seed's pass and scores."""

    subject: Subject
    result: Pass
    scores: list[Score]
    problems: list[str]


@dataclass(frozen=True)
class Evaluated:
    """All that a report is made of."""

    runs: list[Run]
    """One for each seed."""
    scores: list[Score]
    """Over all seeds."""
    protocol: Protocol
    requests: tuple[Request, ...]
    extractors: list[Extractor]
    references: dict[str, Reference]
    checks: list[Check]
    reference_seconds: float
    metrics_seconds: float

    def report(self, state: PartialState) -> Report:
        """The report."""
        first = self.runs[0]
        source = first.subject.source
        labels = next(iter(first.result.collected.values())).labels
        times = [vars(run.result.times) for run in self.runs]
        problems = [problem for run in self.runs for problem in run.problems]
        return Report(
            title=first.subject.title,
            subject=source.describe(),
            protocol=self.protocol,
            samples=len(source),
            seed=first.subject.plan.get("seed"),
            repeats=len(self.runs),
            labels=label_histogram(labels, source.class_names),
            scores=self.scores,
            references={name: reference.account for name, reference in self.references.items()},
            extractors=[extractor.describe() for extractor in self.extractors],
            environment=environment(state.device, state.num_processes),
            seconds={
                **{key: sum(one[key] for one in times) for key in times[0]},
                "reference": self.reference_seconds,
                "metrics": self.metrics_seconds,
            },
            banners=list(dict.fromkeys(extractor.banner for extractor in self.extractors if extractor.banner)),
            warnings=list(dict.fromkeys([*self._warnings(), *problems])),
            checks=self.checks,
            cost=self._cost(state),
            class_names=source.class_names,
        )

    def pictures(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Title -> images and labels, for the page."""
        ours = next(iter(self.runs[0].result.collected.values()))
        theirs = next((reference.collected for reference in self.references.values()), None)
        found = {"What was scored": ours, "The reference": theirs}
        return {
            title: (side.pictures, side.picture_labels)
            for title, side in found.items()
            if side is not None and side.pictures is not None
        }

    def _cost(self, state: PartialState) -> dict[str, float]:
        subject = self.runs[0].subject
        if subject.generator is None:
            return {}
        count = len(subject.source) * len(self.runs)
        made = (count - self._resumed) / state.num_processes
        cost = {
            "parameters": float(sum(p.numel() for p in subject.generator.network.parameters())),
            "seconds_per_image": sum(run.result.times.sampling for run in self.runs) / count,
        }
        return cost | ({"evaluations_per_image": round(subject.evaluations.rows / made, 2)} if made else {})

    @property
    def _resumed(self) -> int:
        return sum(run.result.resumed for run in self.runs)

    def _warnings(self) -> list[str]:
        source, protocol = self.runs[0].subject.source, self.protocol
        warnings = [*source.warnings, *(text for found in self.references.values() for text in found.warnings)]
        if source.class_sorted() and protocol.split_rule.shuffle_seed is None and self._wants(Need.LOGITS):
            warnings.append("the images lie sorted by class: inception scores over consecutive chunks are far too low")
        for extractor in self.extractors:
            width = extractor.dimensions[extractor.feature_layer]
            if len(source) <= width and self._wants(Need.MOMENTS):
                warnings.append(
                    f"{len(source)} images for {width} features of {extractor.name}: the covariance is rank-deficient"
                    " and distances are biased upwards; compare only with scores of as many images"
                )
        if protocol.reference and len(source) != _PUBLISHED_SAMPLES:
            warnings.append(f"{len(source)} images were scored; the published numbers use {_PUBLISHED_SAMPLES:,}")
        if protocol.note:
            warnings.append(f"{protocol.title}: {protocol.note}")
        if self._resumed:
            warnings.append(f"{self._resumed} images were done by an interrupted run of the same command")
        return warnings

    def _wants(self, need: Need) -> bool:
        return any(METRICS[request.metric].need is need for request in self.requests)


def expected_scores(target: str, subject: Subject) -> tuple[ExpectedScore, ...]:
    """What the run's recipe expects, from its `expected:` section."""
    file = Path(str(subject.plan.get("run", target))) / "config.yaml"
    tree = configs.read(file) if file.is_file() else {}
    return tuple(ExpectedScore.model_validate(item) for item in tree.get("expected", ()))
