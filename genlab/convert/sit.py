"""Official DiT, SiT and LightningDiT parameters in genlab's DiT: names are the same, only arguments are translated.

The files differ in nothing but block options and the time unit that the weights expect; `dit` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.dit import PRESETS, DiT
from genlab.nn.embed import time_features

PROJECTORS = "projectors."
"""Where REPA keeps heads that help training and are of no use afterwards."""
_ROPE = "feat_rope.freqs_"
"""Where LightningDiT keeps tables of rotary positions."""


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `DiT`; what is missing takes the official default."""
    side, rms = model.get("input_size", 32), model.get("use_rmsnorm", False)
    return {
        "grid": (side, side),
        "channels": model.get("in_channels", 4),
        "patch": model.get("patch_size", 2),
        "width": model.get("hidden_size", 1152),
        "depth": model.get("depth", 28),
        "heads": model.get("num_heads", 16),
        "mlp_ratio": model.get("mlp_ratio", 4.0),
        "num_classes": model.get("num_classes", 1000),
        "learn_sigma": model.get("learn_sigma", True),
        "null_row": model.get("class_dropout_prob", 0.1) > 0,
        "rms_norm": rms,
        "swiglu": model.get("use_swiglu", False),
        "rope": model.get("use_rope", False),
        "qk_norm": ("rms" if rms else "layer") if model.get("use_qknorm", model.get("qk_norm", False)) else "none",
        "shift": not model.get("wo_shift", False),
    }


def dit_arguments(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """The arguments of `DiT` that fit a state dict, read from its names and shapes.

    The latent grid is taken to be square and the last row of the label table to be the null row. Rotary positions are
    known by their tables. Heads leave no trace in the shapes, except in norms of queries: else they come from the
    preset of the same depth and width, or must be given.

    Raises:
        CheckpointError: not a DiT, or `heads` is needed.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        side = math.isqrt(state["pos_embed"].shape[1]) * patch
        outputs = state["final_layer.linear.weight"].shape[0]
        rows = state["y_embedder.embedding_table.weight"].shape[0]
        vectors = state["blocks.0.adaLN_modulation.1.bias"].shape[0] // width
        hidden = state["blocks.0.mlp.w3.weight" if "blocks.0.mlp.w3.weight" in state else "blocks.0.mlp.fc2.weight"]
    except KeyError as error:
        raise CheckpointError(f"no DiT or SiT checkpoint: the key {error} is missing") from error
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    swiglu, qk = "blocks.0.mlp.w3.weight" in state, state.get("blocks.0.attn.q_norm.weight")
    qk_norm = "none" if qk is None else "layer" if "blocks.0.attn.q_norm.bias" in state else "rms"
    return {
        "grid": (side, side),
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads or (preset_heads(depth, width) if qk is None else width // len(qk)),
        "mlp_ratio": _mlp_ratio(width, hidden.shape[1], swiglu),
        "num_classes": rows - 1,
        "learn_sigma": outputs == 2 * patch * patch * channels,
        "null_row": True,
        "rms_norm": "blocks.0.norm1.weight" in state,
        "swiglu": swiglu,
        "rope": _ROPE + "cos" in state,
        "qk_norm": qk_norm,
        "shift": vectors == 6,
    }


def load(network: DiT, state: Mapping[str, Tensor]) -> DiT:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ.

    Tables of rotary positions are left out: the network computes its own.
    """
    values = {key: value for key, value in state.items() if not key.startswith(_ROPE)}
    fill_all(network.state_dict(), values, "the checkpoint does not fit the network")
    return network


def from_repa(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network of REPA, whose time runs from data at 0 to noise at 1, as one of SiT's: v(x, t) = -v'(x, 1 - t).

    Exact: the features of 1 - t are a rotation of those of t, which the first Linear takes in, and the last one changes
    its sign. Heads that only helped training are left out.
    """
    values = {key: value for key, value in state.items() if not key.startswith(PROJECTORS)}
    first, last = "t_embedder.mlp.0.weight", "final_layer.linear"
    at_one = time_features(torch.ones(1), values[first].shape[1])[0]  # [features]
    cosine, sine = at_one.chunk(2)
    cosines, sines = values[first].chunk(2, dim=1)  # 2 x [D,features/2]
    values[first] = torch.cat([cosines * cosine + sines * sine, cosines * sine - sines * cosine], dim=1)
    return values | {f"{last}.{name}": -values[f"{last}.{name}"] for name in ("weight", "bias")}


def preset_heads(depth: int, width: int) -> int:
    """Attention heads of the published DiT of this depth and width. Raises CheckpointError if there is none."""
    for sizes in PRESETS.values():
        if (sizes["depth"], sizes["width"]) == (depth, width):
            return sizes["heads"]
    raise CheckpointError(
        f"a DiT of depth {depth} and width {width} is no published size, and the number of attention heads "
        "cannot be read from the weights: give --heads"
    )


def _mlp_ratio(width: int, hidden: int, swiglu: bool) -> float:
    """The ratio that makes a DiT of this width have so many hidden features."""
    if not swiglu:
        return hidden / width
    candidates = [4.0, *((1.5 * hidden + step / 2) / width for step in range(6))]  # rounded down twice on the way
    return next(ratio for ratio in candidates if int(2 / 3 * int(width * ratio)) == hidden)
