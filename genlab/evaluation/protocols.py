"""Protocols: how the number of a paper is made, as data. The rows are in `published.py`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from genlab.core.settings import Settings
from genlab.evaluation import inception_score
from genlab.evaluation.inception_score import SplitRule
from genlab.evaluation.quantise import Rounding

Sampling: TypeAlias = dict[str, str | int | float]
SplitName: TypeAlias = Literal["adm", "torch_fidelity", "dgm_eval", "studiogan", "titok"]
_SPLITS: dict[str, SplitRule] = {
    "adm": inception_score.ADM,
    "torch_fidelity": inception_score.TORCH_FIDELITY,
    "dgm_eval": inception_score.DGM_EVAL,
    "studiogan": inception_score.STUDIOGAN,
    "titok": inception_score.TITOK,
}


class Protocol(Settings):
    """Everything that a score depends on besides the generator."""

    name: str
    title: str
    """Whose numbers it reproduces."""
    image_size: int | None = None
    """Side of the scored images; None: any."""
    samples: int = Field(default=50_000, ge=1)
    labels: Literal["balanced", "random"] = "balanced"
    """Every class equally often, or uniform by seed."""
    rounding: Rounding = Rounding.HALF_UP
    extractor: str = "inception"
    metrics: tuple[str, ...] = ("fid", "sfid", "is", "precision", "recall")
    """Plain names are computed on `extractor`; `precision@pixels` names its own."""
    reference: tuple[str, ...] = ()
    """File names of the published reference."""
    reference_url: str = ""
    splits: SplitName = "adm"
    """How the judge deals images out for the inception score."""
    k: int = Field(default=3, ge=1)
    strict_neighbourhoods: bool = False
    """prdc's open balls instead of ADM's closed ones."""
    half_distances: bool = False
    """Emulate the float16 distances of ADM's graph in precision and recall."""
    sampling: Sampling = Field(default_factory=dict)
    """The published sampler settings that a generator of this paper should use; `genlab evaluate` applies those that
    the generator's process knows, and none if it does not know the sampler."""
    note: str = ""
    """What differs from the paper, or is not certain."""

    @property
    def split_rule(self) -> SplitRule:
        """The rule behind `splits`."""
        return _SPLITS[self.splits]


class ExpectedScore(Settings):
    """A published or measured score that `genlab evaluate --check` compares with."""

    protocol: str
    metric: str
    """As reports name it: fid, fd_efflite0, class_accuracy."""
    value: float
    source: str
    """Paper and table, or the command and hardware of a measurement."""
    tolerance: float = Field(default=0.05, gt=0)
    """Relative difference that still counts as reproduced."""


class EvaluationSettings(Settings):
    """The `evaluation:` section of a config: scores while training."""

    every: int | None = Field(default=None, ge=1)
    """Images between evaluations (also one at the end). Default: none."""
    samples: int = Field(default=1000, ge=2)
    extractor: str = "efflite0"
    metrics: tuple[str, ...] = ("fid", "precision", "recall")
    against: str | None = None
    """A file of statistics made with `genlab reference`. Default: the training data themselves."""
    reference_images: int = Field(default=10_000, ge=2)
    """Training images that serve as reference, at most, where `against` is not given."""
    seed: int = 0
    """Of the samples: the same ones each time, so that changes are the network's."""
    batch: int = Field(default=64, ge=1)
    """Samples at once, per process."""
