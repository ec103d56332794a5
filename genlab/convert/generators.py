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

from genlab.convert import (
    arflow,
    dimr,
    dit,
    edm,
    enat,
    fit,
    improved_mean_flow,
    mean_flow,
    shortcut,
    sit,
    var,
    xar,
)
from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import CheckpointError
from genlab.networks.arflow import ARFlow
from genlab.networks.dimr import DiMR
from genlab.networks.dit import DiT
from genlab.networks.edm2 import Edm2
from genlab.networks.edm_unet import EdmUNet
from genlab.networks.enat import ENAT
from genlab.networks.fit import FiT
from genlab.networks.imf_dit import IMFDiT
from genlab.networks.interval_dit import IntervalDiT
from genlab.networks.xar import XAR

Family: TypeAlias = Literal[
    "dit", "sit", "repa", "lightningdit", "dimr", "fit", "arflow", "var", "flexvar", "mvar", "xar", "enat",
    "edm", "edm2", "meanflow", "imf", "shortcut",
]  # fmt: skip
State: TypeAlias = Mapping[str, Tensor]
FAMILIES: tuple[Family, ...] = get_args(Family)
_FIT_SIDE = 16
"""Tokens on a side of the images that FiT was trained on, which its weights do not tell."""


class Hints(NamedTuple):
    """What leaves no trace in the weights of sizes that are not published."""

    heads: int | None = None
    """Attention heads."""
    scales: tuple[int, ...] | None = None
    """Of the tokenizer that a recipe names."""
    decoder_depth: int | None = None
    """Blocks of a recipe's network that decode."""


@dataclass(frozen=True)
class Architecture:
    """One network class, with the reader of its published files."""

    name: str
    """Of its config."""
    families: tuple[Family, ...]
    """Whose weights these may be."""
    matches: Callable[[State], bool]
    arguments: Callable[[State, Hints], dict[str, Any]]
    """The constructor's arguments, `grid` or `scales` among them."""
    preset: Callable[[dict[str, Any], State], str | None]
    network: Callable[..., Any]
    load: Callable[[Any, State], Network]
    any_grid: bool = False
    """Whether it works on other grids than it was trained on, or its weights do not tell that one."""


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
    any_grid: bool
    """Whether it takes others too."""
    scales: tuple[int, ...] | None
    """Of the codes that it was trained on."""
    channels: int | None
    """C, for networks that see more of the tokens than codes."""
    vocab: int | None
    """V, for networks of codes."""
    num_classes: int
    """K."""
    network: Callable[[LatentSpec], Network]
    """Latents -> the network with its weights. Raises CheckpointError for half a file, ConfigError for a grid that the
    patches do not tile."""


def recognise(state: State, where: str, hints: Hints | None = None, wanted: str | None = None) -> Found:
    """What a state dict under its official names is.

    Args:
        where: the file, for messages.
        hints: for sizes and schedules that are not published.
        wanted: the family that it is to be of.

    Raises:
        CheckpointError: no generator that is known, or a part of one, or its names are those of another family.
    """
    repa = any(key.startswith(sit.PROJECTORS) for key in state)
    state = sit.from_repa(state) if repa else state
    architecture = next((known for known in _ARCHITECTURES if known.matches(state)), None)
    if architecture is None:
        raise CheckpointError(
            f"{where}: no generator that is known (it has {', '.join(list(state)[:3])} ...); "
            f"known: {', '.join(FAMILIES)}, and tokenizers"
        )
    families: tuple[Family, ...] = ("repa",) if repa else architecture.families
    if wanted is not None and wanted not in (families if families != _DIT_FAMILIES else _DIT_LIKE):
        raise CheckpointError(f"{where}: by its weights {' or '.join(families)}, not {wanted}")
    if "pos_embed" in state and math.isqrt(tokens := state["pos_embed"].shape[1]) ** 2 != tokens:
        raise CheckpointError(f"{where}: its position table has {tokens} tokens; only square latent grids are read")
    arguments = architecture.arguments(state, hints or Hints())
    # what the tokenizer and the data decide in a config
    fixed = ("grid", "scales", "channels", "vocab", "num_classes", "null_row")
    preset = architecture.preset(arguments, state)
    section = {"name": architecture.name} | ({"preset": preset} if preset else {})
    section |= {key: value for key, value in arguments.items() if key not in fixed}

    own_scales = arguments.get("scales")
    grid = (own_scales[-1], own_scales[-1]) if own_scales else arguments["grid"]

    def network(spec: LatentSpec) -> Network:
        shape = {"scales": spec.scales} if own_scales else {"grid": spec.grid}
        return architecture.load(architecture.network(**{**arguments, **shape}), state)

    if families == _DIT_FAMILIES and any(section[key] for key in ("rms_norm", "swiglu", "rope")):
        families = ("lightningdit",)
    return Found(
        families,
        section,
        preset,
        grid,
        architecture.any_grid,
        own_scales,
        arguments.get("channels"),
        arguments.get("vocab"),
        arguments["num_classes"],
        network,
    )


def _next_scale(family: var.Family) -> Architecture:
    def arguments(state: State, hints: Hints) -> dict[str, Any]:
        positions = next(value for key, value in state.items() if key.endswith("pos_1LC")).shape[1]
        fits = hints.scales is not None and (
            family == "flexvar" or sum(side * side for side in hints.scales) == positions
        )
        return var.arguments(state, hints.heads, hints.scales if fits else None)

    return Architecture(
        family,
        (family,),
        lambda state: var.family_of(state) == family,
        arguments,
        lambda arguments, state: var.preset_of(family, arguments),
        var.NETWORKS[family],
        var.load,
        any_grid=family == "flexvar",
    )


_AUGMENTATIONS = "model.map_augment.weight"


def _edm_arguments(state: State, hints: Hints) -> dict[str, Any]:
    arguments = edm.arguments(state)
    if arguments.pop("embedding_multiplier", 4) != 4:
        raise CheckpointError("an EDM whose embedding is not four times as wide as its first level; none is published")
    arguments.pop("augment_features", None)
    return arguments


def _load_edm(network: Any, state: State) -> Network:
    """What tells the network how training images were augmented is multiplied by zeros in sampling: left out."""
    return edm.put(network, {key: value for key, value in state.items() if key != _AUGMENTATIONS}).eval()


def _fit_arguments(state: State, hints: Hints) -> dict[str, Any]:
    arguments = fit.fit_arguments(state, hints.heads)
    side = _FIT_SIDE * arguments["patch"]
    return {"grid": (side, side), **arguments}


_DIT_FAMILIES: tuple[Family, ...] = ("dit", "sit")
_DIT_LIKE: tuple[Family, ...] = (*_DIT_FAMILIES, "lightningdit")
"""Families with the same names, of which options of the blocks tell the last one."""
_ARCHITECTURES = (
    Architecture(
        "dimr",
        ("dimr",),
        lambda state: any(key.startswith("stages.0.") for key in state),
        lambda state, hints: dimr.dimr_arguments(state, hints.heads),
        lambda arguments, state: dimr.preset_of(state),
        DiMR,
        dimr.load,
    ),
    Architecture(
        "arflow",
        ("arflow",),
        lambda state: any(key.endswith(".attn.gt_proj.weight") for key in state),
        lambda state, hints: arflow.arflow_arguments(state),
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
        any_grid=True,  # as its positions are rotary alone
    ),
    Architecture(
        "interval_dit",
        ("meanflow",),
        mean_flow.matches,
        lambda state, hints: sit.dit_arguments(state, hints.heads),
        lambda arguments, state: dit.preset_of(arguments),
        IntervalDiT,
        mean_flow.load,
    ),
    Architecture(
        "interval_dit",
        ("shortcut",),
        shortcut.matches,
        lambda state, hints: shortcut.shortcut_arguments(state, hints.heads),
        lambda arguments, state: dit.preset_of(arguments),
        IntervalDiT,
        shortcut.load,
        any_grid=True,
    ),
    Architecture(
        "imf_dit",
        ("imf",),
        improved_mean_flow.matches,
        lambda state, hints: improved_mean_flow.imf_dit_arguments(state),
        lambda arguments, state: improved_mean_flow.preset_of(arguments),
        IMFDiT,
        improved_mean_flow.load,
        any_grid=True,
    ),
    Architecture(
        "dit",
        _DIT_FAMILIES,
        lambda state: "x_embedder.proj.weight" in state and "y_embedder.embedding_table.weight" in state,
        lambda state, hints: sit.dit_arguments(state, hints.heads),
        lambda arguments, state: dit.preset_of(arguments),
        DiT,
        sit.load,
    ),
    Architecture(
        "xar",
        ("xar",),
        xar.matches,
        lambda state, hints: xar.xar_arguments(state, hints.heads),
        lambda arguments, state: xar.preset_of(arguments),
        XAR,
        xar.load,
    ),
    Architecture(
        "enat",
        ("enat",),
        enat.matches,
        lambda state, hints: enat.enat_arguments(state, hints.heads, hints.decoder_depth),
        lambda arguments, state: enat.preset_of(arguments),
        ENAT,
        enat.load,
    ),
    *map(_next_scale, var.NETWORKS),
    Architecture(
        "edm",
        ("edm",),
        lambda state: "model.map_layer0.weight" in state,
        _edm_arguments,
        lambda arguments, state: edm.preset_of(arguments),
        EdmUNet,
        _load_edm,
    ),
    Architecture(
        "edm2",
        ("edm2",),
        lambda state: "unet.out_gain" in state,
        lambda state, hints: edm.arguments(state),
        lambda arguments, state: edm.preset_of(arguments),
        Edm2,
        edm.put,
    ),
)
