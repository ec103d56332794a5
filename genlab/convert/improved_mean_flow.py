"""Published improved MeanFlow parameters in genlab's IMFDiT: names are the same but for the wrappers of flax layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.imf_dit import PRESETS, IMFDiT, IMFDiTConfig


def our_name(name: str) -> str:
    """The name in IMFDiT of a parameter of the official PyTorch branch."""
    return re.sub(r"\._flax_(linear|embedding)\b", "", name)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is an improved MeanFlow network."""
    return {"u_final_layer.norm.weight", "omega_tokens"} <= set(state)


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
        "mlp_ratio": _mlp_ratio(width, len(block["mlp.w1"])),
        "head_depth": blocks["u_heads"],
        **{f"{name}_tokens": count for name, count in tokens.items()},
        "num_classes": rows - 1,
        "velocity_head": blocks["v_heads"] > 0,
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published network whose sizes are these arguments of `IMFDiT`, with or without the head for the velocity."""
    for name in PRESETS:
        sizes = IMFDiTConfig(preset=name).model_dump(exclude={"name", "preset", "velocity_head"})
        if all(arguments[key] == value for key, value in sizes.items()):
            return name
    return None


def load(network: IMFDiT, state: Mapping[str, Tensor]) -> IMFDiT:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    values = {our_name(key): value for key, value in state.items()}
    fill_all(network.state_dict(), values, "the checkpoint does not fit the network")
    return network


def _mlp_ratio(width: int, hidden: int) -> float:
    """The ratio that makes a network of this width have so many hidden features: the published one, if it does."""
    published: float = IMFDiTConfig.model_fields["mlp_ratio"].default
    return published if int(width * published) == hidden else (hidden + 0.5) / width


def _count(state: Mapping[str, Tensor], part: str) -> int:
    """The number of blocks in `part`."""
    return len({key.split(".")[1] for key in state if key.startswith(f"{part}.")})
