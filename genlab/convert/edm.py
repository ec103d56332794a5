"""Official EDM and EDM2 networks <-> genlab's EdmUNet and Edm2.

Names are the same below `model.` (EDM) and `unet.` (EDM2). The rows of fused attention projections are ordered
[heads, C/heads, 3] there and [3, heads, C/heads] here, and the filters of the resampling are no parameters here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from genlab.convert import nvidia_pickle
from genlab.core.errors import CheckpointError
from genlab.core.weights import read_tensors
from genlab.networks import edm2, edm_unet
from genlab.networks.edm2 import Edm2, Edm2Block
from genlab.networks.edm_blocks import Block
from genlab.networks.edm_unet import EdmUNet

_LAYER = re.compile(r"(?:model|unet)\.(enc|dec)\.(\d+)x(\d+)_(\w+?)\.(.+)")
_FUSED = re.compile(r"(?:(.+)\.)?(?:attn_)?qkv\.(?:weight|bias)")
LATENTS = {"mean": (5.81, 3.25, 0.12, -2.15), "std": (8.34, 9.24, 7.42, 6.56)}
"""How EDM2 standardises the raw latents of the Stable Diffusion VAE: to a deviation of 0.5."""


M = TypeVar("M", bound=nn.Module)


class Loaded(NamedTuple):
    """A network made of foreign weights."""

    network: EdmUNet | Edm2
    weights: Literal["ema", "unnamed"]
    """Whether the file says that they are averages."""
    preset: str | None
    """The published size that it has."""


def load(path: str | Path, channels_per_head: int = 64) -> Loaded:
    """The network in one of NVIDIA's .pkl files, or in a .safetensors file of the official names.

    Nothing in the file is executed. Raises CheckpointError.

    Args:
        channels_per_head: features of an attention head, which cannot be seen in the weights; 64 in all published ones.
    """
    path = Path(path)
    weights: Literal["ema", "unnamed"] = "unnamed"
    if path.suffix == ".safetensors":
        state = read_tensors(path)
    else:
        state, weights = read_pickle(path), "ema"
    network = build(arguments(state, channels_per_head))
    return Loaded(put(network, state), weights, preset_of(arguments(state, channels_per_head)))


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The averaged parameters and buffers in one of NVIDIA's .pkl files. Raises CheckpointError."""
    content = nvidia_pickle.read(path)
    if not isinstance(content.get("ema"), nvidia_pickle.Record):
        raise CheckpointError(f"{path}: has no averaged network `ema`, only {', '.join(map(str, content))}")
    return nvidia_pickle.state_dict(content["ema"])


def with_unit_range(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A KL tokenizer that EDM2 runs on pixels of 0 to 1 -> the same for pixels of -1 to 1.

    Exact for the decoder. The encoder's padding is grey where EDM2's is black, which its borders notice.
    """
    first, last = "encoder.conv_in", "decoder.conv_out"
    into, out = state[f"{first}.weight"], state[f"{last}.weight"]
    return {
        **state,
        f"{first}.weight": into / 2,
        f"{first}.bias": state[f"{first}.bias"] + into.sum(dim=(1, 2, 3)) / 2,
        f"{last}.weight": out * 2,
        f"{last}.bias": state[f"{last}.bias"] * 2 - 1,
    }


def build(arguments: Mapping[str, Any]) -> EdmUNet | Edm2:
    """The network of `arguments` (or `from_constructor`), in evaluation mode."""
    kind: Callable[..., EdmUNet | Edm2] = EdmUNet if "family" in arguments else Edm2
    return kind(**arguments).eval()


def arguments(state: Mapping[str, Tensor], channels_per_head: int = 64) -> dict[str, Any]:
    """The arguments of `EdmUNet` or `Edm2` that fit an official state dict. Raises CheckpointError for another network.

    Dropout leaves no trace and is 0. An EDM filter is known by its buffer.
    """
    layers = [match.groups() for key in state if (match := _LAYER.fullmatch(key))]
    sides = sorted({(int(h), int(w)) for _, h, w, _, _ in layers}, reverse=True)
    try:
        if "unet.out_gain" in state:
            return _edm2_arguments(state, layers, sides, channels_per_head)
        return _edm_arguments(state, layers, sides, channels_per_head)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"no network of EDM or EDM2: {error} is missing") from error


def from_constructor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments as those of `EdmUNet` (a `model_type` is given) or `Edm2`."""
    side = model["img_resolution"]
    shared = {
        "grid": (side, side),
        "channels": model["img_channels"],
        "num_classes": model.get("label_dim", 0),
        "width": model["model_channels"],
        "dropout": model.get("dropout", 0.0),
    }
    kind = model.get("model_type")
    if kind is None:
        return shared | {
            "multipliers": tuple(model.get("channel_mult", (1, 2, 3, 4))),
            "blocks": model.get("num_blocks", 3),
            "attention": tuple(model.get("attn_resolutions", (16, 8))),
            "channels_per_head": model.get("channels_per_head", 64),
            "uncertainty_features": model.get("logvar_channels", 128),
            "time_multiplier": model.get("channel_mult_noise"),
            "embedding_multiplier": model.get("channel_mult_emb"),
        }
    if kind not in ("DhariwalUNet", "SongUNet"):
        raise CheckpointError(f"an unknown network of EDM: {kind}; known are DhariwalUNet and SongUNet")
    adm = kind == "DhariwalUNet"
    shared |= {
        "family": "adm" if adm else "song",
        "multipliers": tuple(model.get("channel_mult", (1, 2, 3, 4) if adm else (1, 2, 2, 2))),
        "blocks": model.get("num_blocks", 3 if adm else 4),
        "attention": tuple(model.get("attn_resolutions", (32, 16, 8) if adm else (16,))),
        "channels_per_head": model.get("channels_per_head", 64) if adm else None,
        "embedding_multiplier": model.get("channel_mult_emb", 4),
        "augment_features": model.get("augment_dim", 0),
    }
    if adm:
        return shared
    return shared | {
        "time_features": model.get("embedding_type", "positional"),
        "time_multiplier": model.get("channel_mult_noise", 1),
        "encoder": model.get("encoder_type", "standard"),
        "decoder": model.get("decoder_type", "standard"),
        "taps": tuple(float(tap) for tap in model.get("resample_filter", (1, 1))),
    }


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The published network that has these arguments, if any; dropout does not matter."""
    presets = edm_unet.PRESETS if "family" in arguments else edm2.PRESETS
    for name, sizes in presets.items():
        if all(arguments[key] == value for key, value in sizes.items() if key != "dropout"):
            return name
    return None


def put(network: M, state: Mapping[str, Tensor]) -> M:
    """Put official parameters into `network`, or into a block, and return it.

    Raises:
        CheckpointError: names or shapes differ.
    """
    blocks = _attending(network)
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("model.").removeprefix("unet.")
        if name.endswith(("resample_filter", "sigma_data")):
            continue
        match = _FUSED.fullmatch(name)
        if match and (match[1] or "") in blocks:
            value = value.unflatten(0, (blocks[match[1] or ""], -1, 3)).movedim(2, 0).flatten(0, 2)
        ours[name] = value
    try:
        network.load_state_dict(ours, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the network: {error}") from error
    return network


def official(network: EdmUNet | Edm2, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of the network's parameters (`network.state_dict()`, or gradients), under the official names."""
    blocks = _attending(network)
    theirs: dict[str, Tensor] = {}
    for name, value in values.items():
        match = _FUSED.fullmatch(name)
        if match:
            value = value.unflatten(0, (3, blocks[match[1]], -1)).movedim(0, 2).flatten(0, 2)
        prefix = "model." if isinstance(network, EdmUNet) else "" if name.startswith("logvar") else "unet."
        theirs[prefix + name] = value
    return theirs


def _attending(network: nn.Module) -> dict[str, int]:
    """The heads of all blocks that have some."""
    return {
        name: module.heads
        for name, module in network.named_modules()
        if isinstance(module, Block | Edm2Block) and module.heads
    }


def _edm_arguments(
    state: Mapping[str, Tensor], layers: list[tuple[str, ...]], sides: list[tuple[int, int]], channels_per_head: int
) -> dict[str, Any]:
    adm = "model.out_conv.weight" in state
    noise = state["model.map_layer0.weight"].shape[1]
    embedding = state["model.map_layer0.weight"].shape[0]
    rows, columns = sides[0]
    first = state[f"model.enc.{rows}x{columns}_conv.weight"]
    widths = [state[f"model.enc.{h}x{w}_block0.conv0.weight"].shape[0] for h, w in sides]
    width = noise if adm else first.shape[0]
    roles = {role for _, _, _, role, _ in layers}
    label = state.get("model.map_label.weight")
    augment = state.get("model.map_augment.weight")
    sizes = {
        "family": "adm" if adm else "song",
        "grid": sides[0],
        "channels": first.shape[1],
        "num_classes": 0 if label is None else label.shape[1],
        "width": width,
        "multipliers": tuple(features // width for features in widths),
        "blocks": _blocks(layers),
        "attention": _attention(layers, "qkv.weight"),
        "channels_per_head": channels_per_head if adm else None,
        "embedding_multiplier": embedding // width,
        "augment_features": 0 if augment is None else augment.shape[1],
    }
    if adm:
        return sizes
    taps = next((_taps(value) for key, value in state.items() if key.endswith("resample_filter")), (1.0, 1.0))
    return sizes | {
        "time_features": "fourier" if "model.map_noise.freqs" in state else "positional",
        "time_multiplier": noise // width,
        "encoder": "skip" if "aux_skip" in roles else "residual" if "aux_residual" in roles else "standard",
        "decoder": "skip"
        if sum(role == "aux_norm" for *_, role, name in layers if name == "weight") > 1
        else "standard",
        "taps": taps,
    }


def _edm2_arguments(
    state: Mapping[str, Tensor], layers: list[tuple[str, ...]], sides: list[tuple[int, int]], channels_per_head: int
) -> dict[str, Any]:
    rows, columns = sides[0]
    first = state[f"unet.enc.{rows}x{columns}_conv.weight"]
    widths = [state[f"unet.enc.{h}x{w}_block0.conv_res0.weight"].shape[0] for h, w in sides]
    embedding, sines = state["unet.emb_noise.weight"].shape
    told = [sines] * (sines != widths[0]) + [embedding] * (embedding != max(widths))  # of which a multiplier tells
    multipliers = _multipliers(widths + told)[: len(widths)]
    width = widths[0] // multipliers[0]
    label = state.get("unet.emb_label.weight")
    return {
        "grid": sides[0],
        "channels": first.shape[1] - 1,
        "num_classes": 0 if label is None else label.shape[1],
        "width": width,
        "multipliers": multipliers,
        "blocks": _blocks(layers),
        "attention": _attention(layers, "attn_qkv.weight"),
        "channels_per_head": channels_per_head,
        "uncertainty_features": state["logvar_linear.weight"].shape[1],
        "time_multiplier": None if sines == widths[0] else sines // width,
        "embedding_multiplier": None if embedding == max(widths) else embedding // width,
    }


def _multipliers(widths: list[int]) -> tuple[int, ...]:
    """The widths as multiples of the first; of a common divisor if they are none."""
    if all(features % widths[0] == 0 for features in widths):
        return tuple(features // widths[0] for features in widths)
    unit = math.gcd(*widths)
    return tuple(features // unit for features in widths)


def _blocks(layers: list[tuple[str, ...]]) -> int:
    return 1 + max(int(role[5:]) for side, _, _, role, _ in layers if side == "enc" and role.startswith("block"))


def _attention(layers: list[tuple[str, ...]], name: str) -> tuple[int, ...]:
    """Heights of the levels whose encoder blocks attend, largest first."""
    found = {int(h) for side, h, _, role, key in layers if side == "enc" and key == name and role.startswith("block")}
    return tuple(sorted(found, reverse=True))


def _taps(kernel: Tensor) -> tuple[float, ...]:
    """The filter that a normalised outer product [1,1,n,n] is made of, with ends of 1."""
    line = kernel[0, 0, 0] / kernel[0, 0, 0, 0]
    return tuple(float(round(tap)) for tap in line.tolist())
