"""Published improved MeanFlow parameters in genlab's IMFDiT: names are the same but for the wrappers of flax layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.imf_dit import IMFDiT


def our_name(name: str) -> str:
    """The name in IMFDiT of a parameter of the official PyTorch branch."""
    return re.sub(r"\._flax_(linear|embedding)\b", "", name)


def imf_dit_arguments(state: Mapping[str, Tensor], grid: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """The arguments of `IMFDiT` that fit a state dict, read from its names and shapes.

    Args:
        grid: of the latents, of which the weights tell nothing; published ones are for 32 x 32.

    Raises:
        CheckpointError: not an improved MeanFlow network.
    """
    state = {our_name(key): value for key, value in state.items()}
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        block = {name: state[f"u_heads.0.{name}.weight"] for name in ("attn.q_norm", "mlp.w1")}
        tokens = {
            ours: len(state[f"{theirs}_tokens"])
            for ours, theirs in (("class", "class"), ("guidance", "omega"), ("window", "t_min"), ("time", "time"))
        }
        rows = len(state["y_embedder.embedding_table.weight"])
    except KeyError as error:
        raise CheckpointError(f"no improved MeanFlow checkpoint: the key {error} is missing") from error
    blocks = {part: _count(state, part) for part in ("shared_blocks", "u_heads", "v_heads")}
    return {
        "grid": grid,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": blocks["shared_blocks"] + blocks["u_heads"],
        "heads": width // len(block["attn.q_norm"]),
        "hidden": len(block["mlp.w1"]),
        "head_depth": blocks["u_heads"],
        **{f"{name}_tokens": count for name, count in tokens.items()},
        "num_classes": rows - 1,
        "velocity_head": blocks["v_heads"] > 0,
    }


def load(network: IMFDiT, state: Mapping[str, Tensor]) -> IMFDiT:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    values = {our_name(key): value for key, value in state.items()}
    fill_all(network.state_dict(), values, "the checkpoint does not fit the network")
    return network


def _count(state: Mapping[str, Tensor], part: str) -> int:
    """The number of blocks in `part`."""
    return len({key.split(".")[1] for key in state if key.startswith(f"{part}.")})
