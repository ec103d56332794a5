"""Official checkpoints of VAR, FlexVAR and M-VAR -> genlab's networks: the names are the same.

What follows from the schedule is left out: masks, levels, lengths and the zeros in place of a key bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks import flexvar, mvar, var
from genlab.networks.flexvar import FlexVAR
from genlab.networks.mvar import MVAR
from genlab.networks.next_scale import NextScaleNetwork
from genlab.networks.var import VAR

Family: TypeAlias = Literal["var", "flexvar", "mvar"]
NETWORKS: dict[Family, type[NextScaleNetwork]] = {"var": VAR, "flexvar": FlexVAR, "mvar": MVAR}
PRESETS: dict[Family, Mapping[str, Mapping[str, Any]]] = {
    "var": var.PRESETS, "flexvar": flexvar.PRESETS, "mvar": mvar.PRESETS,
}  # fmt: skip
_DERIVED = ("attn_bias_for_masking", "lvl_1L", "zero_k_bias", "attn.patch_nums", "quantize.codebook_used")
_SCHEDULES: dict[int, tuple[int, ...]] = {  # the published ones, by their positions
    680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    9451: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
_HEAD = 64
N = TypeVar("N", bound=NextScaleNetwork)


def family_of(state: Mapping[str, Tensor]) -> Family | None:
    """Whose network a state dict is; None: nobody's here."""
    if not {"pos_start", "pos_1LC", "word_embed.weight", "head_nm.ada_lin.1.weight"} <= set(_plain(state)):
        return None
    if any(".mamba." in key for key in state):
        return "mvar"
    return "var" if any(key.endswith("lvl_embed.weight") for key in state) else "flexvar"


def arguments(
    state: Mapping[str, Tensor], heads: int | None = None, scales: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """The constructor's arguments that fit a state dict of `family_of`, read from its shapes.

    Args:
        heads: attention heads; by default read from their learned factors, else as in all published sizes, 64 features
            for each.
        scales: the schedule; by default the published one of as many positions (for FlexVAR, that of 256 pixels).

    Raises:
        CheckpointError: no such checkpoint, or its schedule is not published and must be given.
    """
    family, state = family_of(state), _plain(state)
    if family is None:
        raise CheckpointError("no checkpoint of VAR, FlexVAR or M-VAR: pos_start, pos_1LC or word_embed is missing")
    width, channels = state["word_embed.weight"].shape
    factors = state.get("blocks.0.attn.scale_mul_1H11")
    positions = 680 if family == "flexvar" else state["pos_1LC"].shape[1]
    scales = scales or _SCHEDULES.get(positions)
    if scales is None:
        raise CheckpointError(
            f"{positions} positions are of no published schedule: give a --recipe whose tokenizer has so many"
        )
    sizes = {
        "scales": scales,
        "channels": channels,
        "vocab": state["head.weight"].shape[0],
        "num_classes": state["class_emb.weight"].shape[0] - 1,
        "width": width,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "heads": heads or (max(width // _HEAD, 1) if factors is None else factors.shape[1]),
        "mlp_ratio": state["blocks.0.ffn.fc1.weight"].shape[0] / width,
        "unit_attention": factors is not None,
    }
    return sizes if family == "mvar" else {**sizes, "shared_adaln": "shared_ada_lin.1.weight" in state}


def preset_of(family: Family, arguments: Mapping[str, Any]) -> str | None:
    """The published size that has these arguments, if any; M-VAR's may have unit attention or not."""
    told = {"depth", "width", "heads"} | ({"shared_adaln"} if family == "var" else set())
    for name, sizes in PRESETS[family].items():
        if all(arguments[key] == sizes.get(key, False) for key in told):
            return name
    return None


def load(network: N, state: Mapping[str, Tensor]) -> N:
    """Put official parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    fill_all(network.state_dict(), _plain(state), "the checkpoint does not fit the network")
    return network


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is derived, and without the mark of compiled modules."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if not any(part in key for part in _DERIVED)}
