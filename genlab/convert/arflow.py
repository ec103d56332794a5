"""Official ARFlow checkpoints <-> genlab's ARFlow.

An official file holds `ema` and `model` (with `opt` and `args`), or a flat state dict. The five projections of
attention and its decay are one matrix here, and the second half of the output channels, which nothing reads, may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.arflow import PRESETS, ARFlow

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "g_proj", "gt_proj")  # the row blocks of in_proj


def weights(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The state dict in a loaded checkpoint, and which it is: "ema", "model" or "flat"; averaged weights come first."""
    for name in ("ema", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            return dict(checkpoint[name]), name
    return dict(checkpoint), "flat"


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `ARFlow`; what is missing takes the official default."""
    side = model.get("input_size", 32)
    return {
        "grid": (side, side),
        "channels": model.get("in_channels", 4),
        "patch": model.get("patch_size", 2),
        "width": model.get("hidden_size", 1152),
        "depth": model.get("depth", 28),
        "heads": model.get("num_heads", 18),
        "mlp_ratio": model.get("mlp_ratio", 4.0),
        "num_classes": model.get("num_classes", 1000),
        "learn_sigma": model.get("learn_sigma", True),
        "null_row": model.get("class_dropout_prob", 0.1) > 0,
    }


def arflow_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `ARFlow` that fit an official state dict, read from its shapes.

    The latent grid is taken to be square, the last row of the label table to be the null row, and the unused output
    channels to be dropped.

    Raises:
        CheckpointError: not an ARFlow.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        side = round(state["pos_embed"].shape[1] ** 0.5) * patch
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        heads = state["blocks.0.attn.gt_proj.weight"].shape[0]
        rows = state["y_embedder.embedding_table.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"no ARFlow checkpoint: the key {error} is missing") from error
    return {
        "grid": (side, side),
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "heads": heads,
        "mlp_ratio": hidden / width,
        "num_classes": rows - 1,
        "learn_sigma": False,
        "null_row": True,
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published size that has these arguments, if any."""
    names = [name for name, sizes in PRESETS.items() if all(arguments[key] == value for key, value in sizes.items())]
    return names[0] if names else None


def load(network: ARFlow, state: Mapping[str, Tensor]) -> ARFlow:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    state = dict(state)
    try:
        for index in range(len(network.blocks)):
            attn = f"blocks.{index}.attn"
            state[f"{attn}.in_proj.weight"] = torch.cat([state.pop(f"{attn}.{name}.weight") for name in _PROJECTIONS])
        for name in ("weight", "bias"):
            key = f"final_layer.linear.{name}"
            state[key] = _used_rows(state[key], network.final_layer.linear.out_features, network.patch)
    except KeyError as error:
        raise CheckpointError(f"the checkpoint does not fit the network: the key {error} is missing") from error
    fill_all(network.state_dict(), state, "the checkpoint does not fit the network")
    return network


def save(network: ARFlow) -> dict[str, Tensor]:
    """The network's parameters under the official names, its output as wide as it is."""
    return unfused(network.state_dict(), len(network.blocks))


def unfused(values: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Values of the network's parameters, such as their gradients, under the official names."""
    official = dict(values)
    for index in range(depth):
        fused = official.pop(f"blocks.{index}.attn.in_proj.weight")  # [4D+H,D]
        for name, part in zip(_PROJECTIONS, fused.split(fused.shape[1])):
            official[f"blocks.{index}.attn.{name}.weight"] = part.clone()
    return official


def _used_rows(value: Tensor, outputs: int, patch: int) -> Tensor:
    """The rows of the last Linear, ordered (row, column, channel), without the second half of the channels if twice
    as many as `outputs`."""
    if len(value) != 2 * outputs:
        return value
    channels = outputs // patch**2
    return value.unflatten(0, (patch * patch, 2 * channels))[:, :channels].flatten(0, 1)
