"""From an extractor's name to the extractor."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from genlab.core.errors import ConfigError
from genlab.evaluation.extractors.base import Extractor, Precision

_PACKAGE = "genlab.evaluation.extractors"
_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> the module whose `load` makes it, and its options
    "inception": (f"{_PACKAGE}.inception", {}),
    "efflite0": (f"{_PACKAGE}.efficientnet_lite", {}),
    "dinov2": (f"{_PACKAGE}.dinov2", {"protocol": "dinov2"}),
    "dinov2_edm2": (f"{_PACKAGE}.dinov2", {"protocol": "dinov2_edm2"}),
    "dinov2_rigid": (f"{_PACKAGE}.dinov2", {"protocol": "dinov2_rigid"}),
    "clip": (f"{_PACKAGE}.clip", {}),
}
NAMES = tuple(_LOADERS)


def load_extractor(
    name: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    *,
    layers: Sequence[str] | None = None,
    precision: Precision = "strict",
    allow_unofficial: bool = False,
) -> Extractor:
    """The extractor called `name`, frozen, on `device`.

    Args:
        name: one of `NAMES`.
        weights: the user's own copy; without it the cache is looked up, then one download is tried.
        layers: names of the feature layers wanted; without it the one that Frechet distances use.
        precision: "strict" (full float32, the judges' own), "tf32" or "bf16".
        allow_unofficial: accept weights at `weights` that are not the published ones; the extractor's name, and so
            the names of all metrics on it, then carries their checksum.

    Raises:
        ConfigError: an unknown name.
        WeightsUnavailable: no weights, or not those expected; the message says how to get them.
        DataError: an unknown layer.
    """
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no extractor {name!r}; there are {', '.join(NAMES)}{hint}")
    module, options = _LOADERS[name]  # imported on demand: each brings a heavy package
    extractor: Extractor = importlib.import_module(module).load(weights, layers, precision, allow_unofficial, **options)
    return extractor.place(device)
