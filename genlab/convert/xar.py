"""Official xAR checkpoints <-> genlab's XAR: parameter names are the same, tables that can be computed are left out.

A published file is a flat state dict; a training checkpoint holds `model_ema` and `model` beside other things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.xar import PRESETS, XAR
from genlab.nn.block_causal import visible

_ROPE = ".attn.rope."
_ALIGNED = 8  # hidden features in multiples of this are quick on GPUs
_MISFIT = "the checkpoint does not fit the network"


def weights(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The state dict in a loaded checkpoint, and which it is: "model_ema", "model" or "flat"; averages come first."""
    for name in ("model_ema", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            return dict(checkpoint[name]), name
    return dict(checkpoint), "flat"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is an xAR's."""
    return "encoder_pos_embed_learned" in state and "encoder_blocks.0.ada_lin.1.weight" in state


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `XAR`; the rest is fixed in the official code."""
    width, heads = model.get("encoder_embed_dim", 768), model.get("encoder_num_heads", 12)
    if model.get("decoder_embed_dim", width) != width:
        raise CheckpointError(f"an xAR with halves of {width} and {model['decoder_embed_dim']} features cannot run")
    return {
        "grid": (16, 16),
        "channels": 16,
        "entity": "cell",
        "entity_size": 8,
        "width": width,
        "encoder_depth": model.get("encoder_depth", 8),
        "decoder_depth": model.get("decoder_depth", 8),
        "heads": heads,
        "decoder_heads": model.get("decoder_num_heads", heads),
        "mlp_ratio": model.get("mlp_ratio", 4.0),
        "num_classes": 1000,
        "dropout": model.get("dropout", 0.1),
    }


def xar_arguments(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """The arguments of `XAR` that fit a state dict, read from its shapes.

    The grid is taken to be square, cut into four cells, and the last row of the class table to be the null row. Heads
    are read from the rotary tables, else from the preset of the same width and depth, or else must be given.

    Raises:
        CheckpointError: not an xAR, or `heads` is needed.
    """
    try:
        width, channels = state["z_proj.weight"].shape
        hidden = state["encoder_blocks.0.mlp.fc1_g.weight"].shape[0]
        side = math.isqrt(state["encoder_pos_embed_learned"].shape[1])
        rows = state["class_emb.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"no xAR checkpoint: {error} is missing or of another shape") from error
    depths = {f"{half}_depth": _depth(state, half) for half in ("encoder", "decoder")}
    return {
        "grid": (side, side),
        "channels": channels,
        "entity": "cell",
        "entity_size": side // 2,
        "width": width,
        **depths,
        "heads": heads or _heads(state, {"width": width, **depths}),
        "mlp_ratio": 4.0 if hidden == width * 8 // 3 else (hidden + 0.5) * 1.5 / width,
        "mlp_multiple": _ALIGNED,
        "num_classes": rows - 1,
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published size that has these arguments, if any."""
    names = [name for name, sizes in PRESETS.items() if all(arguments[key] == value for key, value in sizes.items())]
    return names[0] if names else None


def load(network: XAR, state: Mapping[str, Tensor]) -> XAR:
    """Put official parameters into `network` and return it.

    Where the network's perceptrons have more hidden features, those are zero, which changes nothing.

    Raises:
        CheckpointError: names or shapes differ, or tables that genlab computes are other ones in the file.
    """
    _check_tables(network, state)
    given = {
        name: _with_hidden(name, value, network.hidden, grow=True)
        for name, value in state.items()
        if name != "mask" and _ROPE not in name
    }
    fill_all(network.state_dict(), given, _MISFIT)
    return network


def save(network: XAR, mlp_ratio: float = 4.0) -> dict[str, Tensor]:
    """The network's parameters and tables under the official names; hidden features that were added are taken away."""
    state = network.state_dict()
    hidden = int(network.decoder_embed.in_features * mlp_ratio * 2 / 3)
    official = {name: _with_hidden(name, value, hidden, grow=False) for name, value in state.items()}
    return {**official, **_tables(network)}


def _with_hidden(name: str, value: Tensor, hidden: int, grow: bool) -> Tensor:
    """A parameter with `hidden` features where a perceptron's are: zeros are added if `grow`, else taken away."""
    if "_blocks." not in name or ".mlp." not in name or name.endswith("fc2.bias"):
        return value
    axis = 1 if ".fc2." in name else 0
    missing = hidden - value.shape[axis]
    if missing > 0 and grow:
        return F.pad(value, (0, missing) if axis == value.dim() - 1 else (0, 0, 0, missing))
    if missing < 0 and not grow and not value.narrow(axis, hidden, -missing).any():
        return value.narrow(axis, 0, hidden)
    return value


def _tables(network: XAR) -> dict[str, Tensor]:
    """The buffers of the official state dict."""
    tables = {"mask": torch.where(visible(network.entities.sizes), 0.0, -torch.inf)[None, None]}
    turns: Any = network.turns
    for half, turn in zip(("encoder", "decoder"), turns):
        width = turn.table.shape[1] * 2
        freqs = 10_000.0 ** (-2 * torch.arange(width // 4, dtype=torch.float64) / (width // 2))
        own = {"freqs": freqs.float()}
        cos, sin = turn.table.repeat_interleave(2, dim=1).unbind(-1)  # 2 x [L,d]
        own |= {"freqs_cos": cos, "freqs_sin": sin}
        for number in range(len(getattr(network, f"{half}_blocks"))):
            tables |= {f"{half}_blocks.{number}{_ROPE}{name}": value for name, value in own.items()}
    return tables


def _check_tables(network: XAR, state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError when the file's tables belong to another order, grid or number of heads."""
    if not any(name == "mask" or _ROPE in name for name in state):
        return
    for name, table in _tables(network).items():
        theirs = state.get(name)
        same = theirs is None or (theirs.shape == table.shape and torch.allclose(theirs.cpu(), table.cpu(), atol=1e-4))
        if not same:
            raise CheckpointError(f"{_MISFIT}: its table {name} differs; give the file's entities and --heads")


def _depth(state: Mapping[str, Tensor], half: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{half}_blocks."))


def _heads(state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> int:
    table = state.get(f"encoder_blocks.0{_ROPE}freqs")
    if table is not None:
        return sizes["width"] // (4 * len(table))
    for preset in PRESETS.values():
        if all(preset[key] == value for key, value in sizes.items()):
            return preset["heads"]
    raise CheckpointError(
        f"an xAR of width {sizes['width']} is no published size, and without its rotary tables the number of attention "
        "heads cannot be read from the weights: give --heads"
    )
