"""Files of DiT, SiT, LightningDiT and REPA -> genlab's DiT, and diffusers' DiT folders in both directions.

diffusers' own class departs from the official network in two places, so the same weights give other outputs there: its
time frequencies divide by 127 where the official ones divide by 128, and the norm before each perceptron has eps 1e-5
instead of 1e-6. Weights converted here belong to the official network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from genlab.convert import sit
from genlab.convert.checkpoint_files import read_checkpoint
from genlab.core.errors import CheckpointError
from genlab.core.files import whole_folder, write_text
from genlab.networks.dit import PRESETS, DiT
from genlab.nn.attention import Attention
from genlab.nn.embed import sincos_2d

_PREFIXES = ("module.", "_orig_mod.")
"""What wrappers (data parallelism, compilation) put before parameter names."""
_WEIGHTS = "diffusion_pytorch_model"
_TOP = {  # official name -> diffusers' name
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_EMBEDDERS = {  # the same in every block of diffusers, below transformer_blocks.i.norm1.emb
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_PLAIN = {"rms_norm": False, "swiglu": False, "rope": False, "qk_norm": "none", "shift": True, "mlp_ratio": 4.0}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")


class Loaded(NamedTuple):
    """A network made of foreign weights."""

    network: DiT
    weights: Literal["ema", "raw", "unnamed"]
    """Which weights of the file these are. A file with one set does not say; the published ones are averages."""
    preset: str | None
    """The published size that it has."""


def load(path: str | Path, weights: Literal["ema", "raw"] = "ema", heads: int | None = None) -> Loaded:
    """The network in an official file: a flat state dict, or a trainer's checkpoint with `model` and `ema`.

    Args:
        weights: which to take where there are both.
        heads: attention heads, where the size is none of the published ones.

    Raises:
        CheckpointError: unreadable, another architecture, or without the wanted weights.
    """
    state, found = read(path, weights)
    if any(key.startswith(sit.PROJECTORS) for key in state):
        state = sit.from_repa(state)
    arguments = sit.dit_arguments(state, heads)
    return Loaded(sit.load(DiT(**arguments), state), found, preset_of(arguments))


def read(
    path: str | Path, weights: Literal["ema", "raw"] = "ema"
) -> tuple[dict[str, Tensor], Literal["ema", "raw", "unnamed"]]:
    """The parameters in a .pt, .pth or .safetensors file under their official names, and which weights they are."""
    return select(read_checkpoint(Path(path)), str(path), weights)


def select(
    content: Any, where: str, weights: Literal["ema", "raw"] = "ema"
) -> tuple[dict[str, Tensor], Literal["ema", "raw", "unnamed"]]:
    """As `read`, from what a file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: neither a state dict nor a trainer's checkpoint")
    key = "model" if weights == "raw" else "ema"
    found: Literal["ema", "raw", "unnamed"] = weights
    if key in content:
        content = content[key]
    elif {"model", "ema"} & set(content):
        raise CheckpointError(f"{where}: has no {weights} weights, only {', '.join(map(str, content))}")
    else:
        found = "unnamed"
    tensors = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not tensors or not content:
        raise CheckpointError(f"{where}: neither a state dict nor a trainer's checkpoint")
    return {_plain(key): value for key, value in content.items()}, found


def preset_of(arguments: Mapping[str, Any]) -> str | None:
    """The preset whose sizes and options are these arguments of `DiT`."""
    for name, preset in PRESETS.items():
        if all(arguments[key] == value for key, value in {**_PLAIN, **preset}.items()):
            return name
    return None


def load_diffusers(folder: str | Path) -> Loaded:
    """The network in a diffusers pipeline folder, or in its `transformer` folder. Raises CheckpointError."""
    folder = Path(folder)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads, side, patch = config["num_attention_heads"], config["sample_size"], config["patch_size"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: no diffusers DiT, its config.json is missing or incomplete ({error})"
        ) from error
    files = [file for ending in ("safetensors", "bin") if (file := folder / f"{_WEIGHTS}.{ending}").exists()]
    if not files:
        raise CheckpointError(f"{folder}: has no {_WEIGHTS}.safetensors or .bin")
    state = from_diffusers(read_checkpoint(files[0]), side // patch)
    arguments = sit.dit_arguments(state, heads)
    return Loaded(sit.load(DiT(**arguments), state), "unnamed", preset_of(arguments))


def save_diffusers(network: DiT, folder: str | Path) -> None:
    """Write what diffusers' DiTTransformer2DModel.from_pretrained reads. Raises CheckpointError.

    diffusers' network is square and plain: options that it lacks cannot be written.
    """
    config = diffusers_config(network)
    state = to_diffusers(network.state_dict())
    with whole_folder(Path(folder)) as temporary:
        write_text(temporary / "config.json", json.dumps(config, indent=2))
        save_file(state, temporary / f"{_WEIGHTS}.safetensors", {"format": "pt"})


def diffusers_config(network: DiT) -> dict[str, Any]:
    """The arguments of DiTTransformer2DModel for a plain DiT. Raises CheckpointError for others."""
    rows, columns = network.token_grid
    first = network.get_submodule("blocks.0.attn")
    assert isinstance(first, Attention)
    arguments = sit.dit_arguments(network.state_dict(), first.heads)
    arguments["rope"] = first.rotate is not None
    other = [key for key, value in _PLAIN.items() if arguments[key] != value]
    if other or rows != columns or not network.null_row:
        raise CheckpointError(
            "diffusers' DiT has square latents, a null label and no options: got "
            f"{', '.join(other) or f'{rows} x {columns} tokens, null_row {network.null_row}'}"
        )
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": arguments["heads"],
        "attention_head_dim": arguments["width"] // arguments["heads"],
        "in_channels": arguments["channels"],
        "out_channels": arguments["channels"] * (2 if arguments["learn_sigma"] else 1),
        "num_layers": arguments["depth"],
        "sample_size": rows * network.patch,
        "patch_size": network.patch,
        "num_embeds_ada_norm": network.num_classes,
    }


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> diffusers'. Embedders are repeated in every block, and positions left out."""
    renamed: dict[str, Tensor] = {}
    for name, theirs in _names(_depth(state, "blocks")):
        for ending in (".weight", ".bias"):
            if (value := state.get(name + ending)) is not None:
                parts = value.chunk(3) if name.endswith("qkv") else [value] * len(theirs)
                renamed |= {their + ending: part.clone() for their, part in zip(theirs, parts)}
    return renamed


def from_diffusers(state: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """diffusers' names -> official ones, for `side` x `side` tokens. Raises CheckpointError where one is missing."""
    renamed: dict[str, Tensor] = {}
    try:
        for name, theirs in _names(_depth(state, "transformer_blocks")):
            used = theirs if name.endswith("qkv") else theirs[:1]
            for ending in (".weight",) if name.endswith("embedding_table") else (".weight", ".bias"):
                renamed[name + ending] = torch.cat([state[their + ending] for their in used])
    except KeyError as error:
        raise CheckpointError(f"no DiT of diffusers: the key {error} is missing") from error
    width = renamed["x_embedder.proj.weight"].shape[0]
    return {"pos_embed": sincos_2d(width, (side, side)).unsqueeze(0), **renamed}


def _names(depth: int) -> Iterator[tuple[str, list[str]]]:
    """Each official module that has parameters, and diffusers' names of it: its parts, or its copies."""
    yield from ((name, [their]) for name, their in _TOP.items())
    for name, their in _EMBEDDERS.items():
        yield name, [f"transformer_blocks.{i}.norm1.emb.{their}" for i in range(depth)]
    for i in range(depth):
        yield f"blocks.{i}.attn.qkv", [f"transformer_blocks.{i}.{part}" for part in _QKV]
        yield from ((f"blocks.{i}.{name}", [f"transformer_blocks.{i}.{their}"]) for name, their in _BLOCK.items())


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    found = [int(key.split(".")[1]) for key in state if key.startswith(f"{blocks}.")]
    if not found:
        raise CheckpointError(f"no DiT: there are no parameters of {blocks}")
    return 1 + max(found)


def _plain(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key
