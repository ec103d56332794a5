"""Which published generator a state dict belongs to: its family, the sizes of its network, and the network itself.

Everything is read from names and shapes. DiT and SiT have the same tensors and differ in what their times mean, so
these two cannot be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor

from genlab.convert import arflow, dimr, dit, fit, sit
from genlab.core.contracts import Network
from genlab.core.errors import CheckpointError
from genlab.networks.arflow import ARFlow
from genlab.networks.dimr import DiMR
from genlab.networks.dit import DiT
from genlab.networks.fit import FiT

Family: TypeAlias = Literal["dit", "sit", "repa", "lightningdit", "dimr", "fit", "arflow"]
State: TypeAlias = Mapping[str, Tensor]
FAMILIES: tuple[Family, ...] = get_args(Family)
_FIT_SIDE = 16
"""Tokens on a side of the images that FiT was trained on, which its weights do not tell."""


@dataclass(frozen=True)
class Architecture:
    """One network class, with the reader of its published files."""

    name: str
    """Of its config."""
    families: tuple[Family, ...]
    """Whose weights these may be."""
    matches: Callable[[State], bool]
    arguments: Callable[[State, int | None], dict[str, Any]]
    """State, attention heads where they leave no trace -> the constructor's arguments, `grid` too."""
    preset: Callable[[dict[str, Any], State], str | None]
    network: Callable[..., Any]
    load: Callable[[Any, State], Network]


class Found(NamedTuple):
    """A published generator's network."""

    families: tuple[Family, ...]
    """What it may be: one family, or several that share their network."""
    section: dict[str, Any]
    """The `network:` section of a config that describes it."""
    preset: str | None
    """The published size that it has."""
    grid: tuple[int, int]
    """(H, W) of the latents that it was trained on."""
    channels: int
    """C."""
    num_classes: int
    """K."""
    network: Callable[[tuple[int, int]], Network]
    """Grid -> the network with its weights. Raises CheckpointError for half a file, ConfigError for a grid that the
    patches do not tile."""


def recognise(state: State, where: str, heads: int | None = None) -> Found:
    """What a state dict under its official names is.

    Args:
        where: the file, for messages.
        heads: attention heads, for sizes that are not published.

    Raises:
        CheckpointError: no generator that is known, or a part of one.
    """
    repa = any(key.startswith(sit.PROJECTORS) for key in state)
    state = sit.from_repa(state) if repa else state
    architecture = next((known for known in _ARCHITECTURES if known.matches(state)), None)
    if architecture is None:
        raise CheckpointError(
            f"{where}: no generator that is known (it has {', '.join(list(state)[:3])} ...); "
            f"known: {', '.join(FAMILIES)}, and tokenizers"
        )
    if "pos_embed" in state and math.isqrt(tokens := state["pos_embed"].shape[1]) ** 2 != tokens:
        raise CheckpointError(f"{where}: its position table has {tokens} tokens; only square latent grids are read")
    arguments = architecture.arguments(state, heads)
    fixed = ("grid", "channels", "num_classes", "null_row")  # what the tokenizer and the data decide in a config
    preset = architecture.preset(arguments, state)
    section = {"name": architecture.name} | ({"preset": preset} if preset else {})
    section |= {key: value for key, value in arguments.items() if key not in fixed}

    def network(grid: tuple[int, int]) -> Network:
        return architecture.load(architecture.network(**{**arguments, "grid": grid}), state)

    families: tuple[Family, ...] = ("repa",) if repa else architecture.families
    if families == _DIT_FAMILIES and any(section[key] for key in ("rms_norm", "swiglu", "rope")):
        families = ("lightningdit",)
    return Found(families, section, preset, arguments["grid"], arguments["channels"], arguments["num_classes"], network)


def _fit_arguments(state: State, heads: int | None) -> dict[str, Any]:
    arguments = fit.fit_arguments(state, heads)
    side = _FIT_SIDE * arguments["patch"]
    return {"grid": (side, side), **arguments}


_DIT_FAMILIES: tuple[Family, ...] = ("dit", "sit")
_ARCHITECTURES = (
    Architecture(
        "dimr",
        ("dimr",),
        lambda state: any(key.startswith("stages.0.") for key in state),
        dimr.dimr_arguments,
        lambda arguments, state: dimr.preset_of(state),
        DiMR,
        dimr.load,
    ),
    Architecture(
        "arflow",
        ("arflow",),
        lambda state: any(key.endswith(".attn.gt_proj.weight") for key in state),
        lambda state, heads: arflow.arflow_arguments(state),
        lambda arguments, state: arflow.preset_of(arguments),
        ARFlow,
        arflow.load,
    ),
    Architecture(
        "fit",
        ("fit",),
        lambda state: "x_embedder.proj.weight" in state and state["x_embedder.proj.weight"].dim() == 2,
        _fit_arguments,
        lambda arguments, state: fit.preset_of(arguments),
        FiT,
        fit.load,
    ),
    Architecture(
        "dit",
        _DIT_FAMILIES,
        lambda state: "x_embedder.proj.weight" in state and "y_embedder.embedding_table.weight" in state,
        sit.dit_arguments,
        lambda arguments, state: dit.preset_of(arguments),
        DiT,
        sit.load,
    ),
)
