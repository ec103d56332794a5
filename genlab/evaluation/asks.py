"""What a pass is to keep of the features of its extractors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genlab.evaluation.extractors import Extractor
from genlab.evaluation.inception_score import TORCH_FIDELITY, SplitRule
from genlab.evaluation.metrics import Need


@dataclass(frozen=True)
class Ask:
    """What to keep of the features of one extractor."""

    extractor: Extractor
    needs: frozenset[Need]
    rule: SplitRule = TORCH_FIDELITY
    most: int | None = None
    """Features kept for pairwise metrics, about; None: all."""


def choose_layers(extractor: Extractor, needs: frozenset[Need]) -> None:
    """Let `extractor` compute the layers that `needs` ask for, and no deeper ones."""
    layers = []
    if needs & {Need.MOMENTS, Need.FEATURES}:
        layers.append(extractor.feature_layer)
    if Need.SPATIAL in needs and extractor.spatial_layer:
        layers.append(extractor.spatial_layer)
    if Need.LOGITS in needs and extractor.logits_layer:
        layers.append(extractor.logits_layer)
    extractor.layers = tuple(layers) or (extractor.feature_layer,)


def account_of(asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """What of extractors and needs must agree for statistics to belong together."""
    return [
        {
            **ask.extractor.describe(),
            "needs": sorted(need.name for need in ask.needs),
            "rule": str(ask.rule),
            "most": ask.most,
        }
        for ask in asks
    ]
