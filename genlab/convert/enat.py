"""Official ENAT checkpoints <-> genlab's ENAT: parameter names are the same.

A file is a bare state dict. A perceptron that no computation uses, and tables of position numbers, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.enat import ENAT, PRESETS

_UNUSED = "prev_embedder."
_LAYERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is an ENAT's."""
    return "prev_proj.norm.weight" in state and "mlm_layer.fc.weight" in state


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `ENAT`.

    A network that was made without label dropout has no null row. The row of its last class is in that place then,
    which matters to guidance alone, and nothing can guide it.
    """
    side, (encoder_depth, decoder_depth) = model["input_size"], model["enc_dec"]
    null_row = model.get("class_dropout_prob", 0.1) > 0
    return {
        "grid": (side, side),
        "vocab": model["codebook_size"],
        "num_classes": model["num_classes"] - (not null_row),
        "width": model["hidden_size"],
        "encoder_depth": encoder_depth,
        "decoder_depth": decoder_depth,
        "heads": model["num_heads"],
        "mlp_ratio": model.get("mlp_ratio", 4.0),
    }


def enat_arguments(
    state: Mapping[str, Tensor], heads: int | None = None, decoder_depth: int | None = None
) -> dict[str, Any]:
    """The arguments of `ENAT` that fit a state dict, read from its shapes.

    The grid is taken to be square. Attention heads, and how many of the blocks decode, leave no trace in the weights:
    where they are not given, they are those of the published size of the same width and number of blocks.

    Raises:
        CheckpointError: not an ENAT, or of no published size, so that `heads` and `decoder_depth` are needed.
    """
    try:
        rows, width = state["x_embedder.word_embeddings.weight"].shape
        positions = state["x_embedder.position_embeddings.weight"].shape[0]
        classes = state["y_embedder.embedding_table.weight"].shape[0]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"no ENAT checkpoint: {error} is missing or of another shape") from error
    if (side := math.isqrt(positions)) ** 2 != positions:
        raise CheckpointError(f"an ENAT of {positions} positions; only square grids are read")
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    published = next(
        (p for p in PRESETS.values() if (p["width"], p["encoder_depth"] + p["decoder_depth"]) == (width, depth)), {}
    )
    heads = heads or published.get("heads")
    decoder_depth = decoder_depth or published.get("decoder_depth")
    if heads is None or decoder_depth is None:
        raise CheckpointError(
            f"an ENAT of width {width} with {depth} blocks is no published size: give --heads, and a --recipe whose "
            "network.decoder_depth says how many of the blocks decode"
        )
    return {
        "grid": (side, side),
        "vocab": rows - 1,
        "num_classes": classes - 1,
        "width": width,
        "encoder_depth": depth - decoder_depth,
        "decoder_depth": decoder_depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published size that has these arguments, if any."""
    names = [name for name, sizes in PRESETS.items() if all(arguments[key] == value for key, value in sizes.items())]
    return names[0] if names else None


def load(network: ENAT, state: Mapping[str, Tensor]) -> ENAT:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    used = {k: v for k, v in state.items() if not k.startswith(_UNUSED) and not k.endswith("position_ids")}
    fill_all(network.state_dict(), used, "the checkpoint does not fit the network")
    return network


def save(network: ENAT) -> dict[str, Tensor]:
    """The network's parameters under the official names, with zeros for the perceptron that is not used."""
    state = network.state_dict()
    unused = {f"{_UNUSED}{name}": torch.zeros_like(state[f"prev_proj.mlp.{name}"]) for name in _LAYERS}
    return {**state, **unused}
