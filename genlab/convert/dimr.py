"""Official DiMR checkpoints in genlab's DiMR, and back.

A file is a flat state dict. The tensors are the same, but genlab keeps the vectors of time of all norms in four long
ones, so each of its parameters is one official tensor or many, end to end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.dimr import PRESETS, DiMR

_NAMES = (  # genlab's and the official names of layers
    (".patches.", ".input_layer.1."),
    (".positions.", ".input_layer.3.position_embeddings."),
    (".classes.", ".class_embeds."),
    (".upsample.project.linear.", ".upsample.1.kernel."),
    (".upsample.project.", ".upsample.0."),
    (".upsample.norm.", ".upsample.2."),
    (".head_norm.", ".output_layer.0."),
    (".head.", ".output_layer.2."),
    (".attn.qkv.", ".block1.query_key_value."),
    (".attn.proj.", ".block1.dense."),
    (".attn.rope.", ".block1.pos_emb."),
    (".attn.cosine.log_scale", ".block1.qk_norm.scale"),
    (".conv.", ".block1.1."),
    (".norm1.", ".block1.norm."),
    (".norm2.", ".block2.norm."),
    (".mlp.gate.", ".block2.w0."),
    (".mlp.features.", ".block2.w1."),
    (".mlp.proj.", ".block2.w2."),
)
TIMES = {"noisy": "param0", "clean": "param1", "slope": "nodecay_weight", "offset": "nodecay_bias"}
_NORMS = {"scale.param0": "td_rms", "weight.param0": "td_layer", "scale": "rms", "linear.weight": "first_rms"}
_UNUSED = "pos_emb.freqs_"
"""In a stage itself: parameters that the official network has with rotary positions and never reads."""


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `DiMR`; what is missing takes the official default.

    Raises:
        CheckpointError: stages that do not see one and the same latent grid.
    """
    stages = model["stage_configs"]
    grids = {(s["max_height"] * _unit(s), s["max_width"] * _unit(s)) for s in stages}
    if len(grids) > 1:
        raise CheckpointError(f"the stages are for latent grids of different sizes: {sorted(grids)}")
    norm = {"TDRMSN": "td_rms", "LN": "td_layer", "RMSN": "rms", "ADARMSN": "first_rms"}
    return {
        "grid": grids.pop(),
        "channels": model["channels"],
        "stages": [_stage_arguments(stage) for stage in stages],
        "num_classes": max((model.get("num_classes") or 0) - 1, 0),
        "norm": norm[model.get("norm_type", "LN")],
        "rope": model.get("pe_type") == "Axial_RoPE",
        "block_gradients": model.get("block_grad_to_lowres", False),
    }


def dimr_arguments(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """The arguments of `DiMR` that fit an official state dict, read from its names and shapes.

    Grids are taken to be square and inputs not to be averaged. Heads leave no trace in the shapes, except in rotary
    positions: else they come from the preset whose first stage has this depth and width, or must be given.

    Raises:
        CheckpointError: not a DiMR, or `heads` is needed.
    """
    try:
        stages = [_stage_from(state, f"stages.{i}.", heads) for i in range(_count(state, "stages."))]
        last = f"stages.{len(stages) - 1}."
        side = math.isqrt(len(state[f"{last}input_layer.3.position_embeddings.weight"]))
        classes = state.get("stages.0.class_embeds.weight")
        norm = next(kind for name, kind in _NORMS.items() if f"stages.0.blocks.0.block2.norm.{name}" in state)
        channels = state[f"{last}input_layer.1.weight"].shape[1]
    except (KeyError, StopIteration, IndexError) as error:
        raise CheckpointError(f"no DiMR checkpoint: {error or 'its norms'} is missing") from error
    return {
        "grid": (side, side),
        "channels": channels,
        "stages": stages,
        "num_classes": 0 if classes is None else len(classes) - 1,
        "norm": norm,
        "rope": any(".qk_norm." in key for key in state),
    }


def preset_of(state: Mapping[str, Tensor]) -> str | None:
    """The published size of an official state dict, or None."""
    found = [_sizes(stage) for stage in dimr_arguments(state, heads=1)["stages"]]
    return next((name for name, stages in PRESETS.items() if [_sizes(stage) for stage in stages] == found), None)


def load(network: DiMR, state: Mapping[str, Tensor]) -> DiMR:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    parts = official_parts(network)
    wanted = {name for rows in parts.values() for name, _ in rows}
    have = {key for key in state if not key.split(".", 2)[-1].startswith(_UNUSED)}
    if wanted != have:
        missing, foreign = sorted(wanted - have), sorted(have - wanted)
        raise CheckpointError(
            f"the checkpoint does not fit the network: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(foreign)} are not known {foreign[:3]}"
        )
    ours = {name: torch.cat([state[official] for official, _ in rows]) for name, rows in parts.items()}
    fill_all(network.state_dict(), ours, "the checkpoint does not fit the network")
    return network


def to_official(network: DiMR, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by genlab's parameter names, such as a state dict or gradients, by the official names."""
    official: dict[str, Tensor] = {}
    for name, rows in official_parts(network).items():
        if name in values:
            parts = values[name].split([count for _, count in rows])
            official |= {key: part for (key, _), part in zip(rows, parts)}
    return official


def official_parts(network: DiMR) -> dict[str, list[tuple[str, int]]]:
    """Each parameter of `network` -> the official tensors that lie below each other in it, with their rows."""
    vectors = {
        slot: _official(f"{module}.{name}")
        for module, layer in network.named_modules()
        for name, slot in getattr(layer, "slots", {}).items()
    }
    parts: dict[str, list[tuple[str, int]]] = {}
    for name, parameter in network.named_parameters():
        if name.startswith("times."):
            kind = TIMES[name.removeprefix("times.")]
            parts[name] = [(f"{vectors[slot]}.{kind}", width) for slot, width in enumerate(network.times.widths)]
        else:
            parts[name] = [(_official(name), len(parameter))]
    return parts


def _official(name: str) -> str:
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name


def _unit(stage: Mapping[str, Any]) -> int:
    return stage.get("image_input_ratio", 1) * stage.get("input_feature_ratio", 1)


def _stage_arguments(stage: Mapping[str, Any]) -> dict[str, Any]:
    """One of the official `stage_configs`; half of its blocks, rounded down, mirror each other around one more."""
    arguments = {
        "block": {"TransformerBlock": "transformer", "ConvNeXtBlock": "convnext"}[stage["block_type"]],
        "width": stage["dim"],
        "depth": 2 * (stage["num_blocks"] // 2) + 1,
        "hidden": stage["hidden_dim"],
        "patch": stage["input_feature_ratio"],
        "pool": stage["image_input_ratio"],
        "head_kernel": stage["final_kernel_size"],
        "dropout": float(stage["dropout_prob"]),
    }
    names = {"num_attention_heads": "heads", "kernel_size": "kernel"}
    return arguments | {ours: stage[theirs] for theirs, ours in names.items() if theirs in stage}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered entries there are below `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _stage_from(state: Mapping[str, Tensor], prefix: str, heads: int | None) -> dict[str, Any]:
    width, _, patch, _ = state[f"{prefix}input_layer.1.weight"].shape
    depth = _count(state, f"{prefix}blocks.")
    sizes = {
        "width": width,
        "depth": depth,
        "hidden": len(state[f"{prefix}blocks.0.block2.w0.weight"]),
        "patch": patch,
        "head_kernel": state[f"{prefix}output_layer.2.weight"].shape[-1],
    }
    kernel = state.get(f"{prefix}blocks.0.block1.1.weight")
    if kernel is not None:
        return {"block": "convnext", **sizes, "kernel": kernel.shape[-1]}
    scale = state.get(f"{prefix}blocks.0.block1.qk_norm.scale")
    found = len(scale) if scale is not None else heads or _preset_heads(depth, width)
    return {"block": "transformer", **sizes, "heads": found}


def _preset_heads(depth: int, width: int) -> int:
    for stages in PRESETS.values():
        if (stages[0]["depth"], stages[0]["width"]) == (depth, width):
            return stages[0]["heads"]
    raise CheckpointError(
        f"a DiMR whose first stage has depth {depth} and width {width} is no published size, and the number of "
        "attention heads cannot be read from the weights: give --heads"
    )


def _sizes(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(stage[key] for key in ("block", "width", "depth", "patch"))
