"""Reuse of features between sampling steps, as a setting."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.cache_policies import AccumulatedGate, Between, FirstBlockGate
from genlab.nn.feature_cache import Usage, cache_branches, cache_stack


class CacheSettings(Settings):
    """What is reused of a transformer's earlier steps. Faster, and only close to the exact samples."""

    kind: Literal["none", "branches", "first_block", "accumulated"] = "none"
    """branches: attention and perceptrons of most steps (FORA; with an order above 0 TaylorSeer). first_block and
    accumulated: all blocks but the first, when that changes little since the last full step, or from step to step."""
    interval: PositiveInt = 3
    """Of branches: every so many steps are full."""
    before: PositiveInt = 3
    """Of branches: so many steps at the beginning are full."""
    after: PositiveInt | None = None
    """Of branches: from this step on all are full."""
    order: NonNegativeInt = Field(0, le=4)
    """Of branches: highest finite difference in the forecast; 0 repeats the last value."""
    threshold: PositiveFloat = 0.08
    """Of first_block and accumulated: relative change from which a step is full."""

    def idle(self) -> set[str]:
        """Names of fields that have no effect under the present kind."""
        branches = {"interval", "before", "after", "order"}
        match self.kind:
            case "none":
                return branches | {"threshold"}
            case "branches":
                return {"threshold"}
        return branches


def caching(network: Network, settings: CacheSettings, calls: int) -> AbstractContextManager[Usage]:
    """A context for one sampling run in which `network` reuses features; it is itself again afterwards.

    Args:
        calls: network calls of the run.

    Raises:
        ConfigError: a network that such a cache does not fit.
    """
    if settings.kind == "none":
        return nullcontext(Usage())
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) < 2 or hasattr(network, "step"):
        raise ConfigError(
            f"a cache needs a plain stack of blocks, which {type(network).__name__} has not; set it to none"
        )
    if settings.kind == "branches":
        return cache_branches(network, Between(settings.interval, settings.before, settings.after), settings.order)
    if settings.kind == "first_block":
        return cache_stack(blocks, FirstBlockGate(settings.threshold))
    return cache_stack(blocks, AccumulatedGate(settings.threshold, calls))
