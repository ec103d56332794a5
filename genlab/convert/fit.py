"""Official FiT and FiTv2 checkpoints <-> genlab's FiT: the parameter names are the same, only arguments are translated.

An official file is a flat state dict of averaged weights. FiT wants the times 0..999 of its diffusion as they are,
although the released code clamps them to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.fit import FiT
from genlab.networks.fit_config import PRESETS

_MODULATIONS = {"normal": "full", "lora": "lora", "swiglu": "swiglu"}


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `FiT`; what is missing takes the official default."""
    side = int(model.get("context_size", 256) ** 0.5)
    patch = model.get("patch_size", 2)
    rows, columns = model.get("max_pe_len_h") or side, model.get("max_pe_len_w") or side
    wide = "wide_swiglu" if model.get("use_swiglu_large") else "swiglu"
    weighted = "w_" if model.get("qk_norm_weight") else ""
    return {
        "grid": (side * patch, side * patch),
        "channels": model.get("in_channels", 4),
        "patch": patch,
        "width": model.get("hidden_size", 1152),
        "depth": model.get("depth", 28),
        "heads": model.get("num_heads", 16),
        "mlp_ratio": model.get("mlp_ratio", 4.0),
        "num_classes": model.get("num_classes", 1000),
        "learn_sigma": model.get("learn_sigma", True),
        "null_row": model.get("class_dropout_prob", 0.1) > 0,
        "mlp": wide if model.get("use_swiglu") else "gelu",
        "modulation": _MODULATIONS[model.get("adaln_type") or "normal"],
        "lora_rank": model.get("adaln_lora_dim"),
        "norm": model.get("norm_type") or "layernorm",
        "q_norm": _qk_norm(model.get("q_norm"), weighted),
        "k_norm": _qk_norm(model.get("k_norm"), weighted),
        "turn_values": model.get("add_rel_pe_to_v", False),
        "time_shift": model.get("time_shifting") or 1.0,
        "extrapolation": model.get("custom_freqs") or "normal",
        "decoupled": model.get("decouple", False),
        "trained_side": model.get("ori_max_pe_len") or side,
        "target": (rows, columns),
        "online": model.get("online_rope", False),
    }


def fit_arguments(state: Mapping[str, Tensor], heads: int | None = None, patch: int = 2) -> dict[str, Any]:
    """The arguments of `FiT` that fit a state dict, read from its shapes; `grid` is for the caller to choose.

    The last row of the label table is taken to be the null row. Heads and the norm of queries and keys leave no trace
    unless it has weights: heads come from the preset of the same depth and width, or else must be given, and the norm
    goes with the modulation as in the published pairs.

    Raises:
        CheckpointError: not a FiT, or `heads` is needed.
    """
    try:
        width, features = state["x_embedder.proj.weight"].shape
        outputs = state["final_layer.linear.weight"].shape[0]
        rows = state["y_embedder.embedding_table.weight"].shape[0]
        gated = "blocks.0.mlp.fc1_g.weight" in state
        hidden = state["blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"no FiT checkpoint: {error} is missing or of another shape") from error
    lora = state.get("blocks.0.adaLN_modulation.2.weight")
    modulation = "full" if "blocks.0.adaLN_modulation.1.weight" in state else "swiglu"
    modulation = "lora" if lora is not None else modulation
    plain_norm = "layernorm" if modulation == "lora" else "none"
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    narrow = gated and hidden == int(4 * width) * 2 // 3
    return {
        "channels": features // patch**2,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads or _preset_heads(depth, width),
        "mlp_ratio": 4.0 if narrow else hidden / width,
        "num_classes": rows - 1,
        "learn_sigma": outputs == 2 * features,
        "null_row": True,
        "mlp": "swiglu" if narrow else "wide_swiglu" if gated else "gelu",
        "modulation": modulation,
        "lora_rank": None if lora is None else lora.shape[1],
        "norm": "w_layernorm" if "blocks.0.norm1.weight" in state else "layernorm",
        "q_norm": "w_layernorm" if "blocks.0.attn.q_norm.weight" in state else plain_norm,
        "k_norm": "w_layernorm" if "blocks.0.attn.k_norm.weight" in state else plain_norm,
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published size that has these arguments, if any."""
    names = [name for name, sizes in PRESETS.items() if all(arguments[key] == value for key, value in sizes.items())]
    return names[0] if names else None


def load(network: FiT, state: Mapping[str, Tensor]) -> FiT:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    fill_all(network.state_dict(), state, "the checkpoint does not fit the network")
    return network


def _qk_norm(kind: str | None, weighted: str) -> str:
    if kind in (None, "none"):
        return "none"
    return weighted + kind.removeprefix("w_")


def _preset_heads(depth: int, width: int) -> int:
    for sizes in PRESETS.values():
        if (sizes["depth"], sizes["width"]) == (depth, width):
            return sizes["heads"]
    raise CheckpointError(
        f"a FiT of depth {depth} and width {width} is no published size, and the number of attention heads "
        "cannot be read from the weights: give --heads"
    )
