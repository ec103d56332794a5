"""Published parameters of shortcut models (a flax tree) in genlab's IntervalDiT, exactly.

Their attention divides scores by d, the width of a head, where DiT divides by its root: queries are scaled instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.convert import flax_pickle, sit
from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.networks.interval_dit import IntervalDiT

_UNUSED = "Embed_0/embedding"
"""A table that the reference creates and never reads."""
_TOP = {
    "PatchEmbed_0/Conv_0": "x_embedder.proj",
    "TimestepEmbedder_0/Dense_0": "t_embedder.time.mlp.0",
    "TimestepEmbedder_0/Dense_1": "t_embedder.time.mlp.2",
    "TimestepEmbedder_1/Dense_0": "t_embedder.interval.mlp.0",
    "TimestepEmbedder_1/Dense_1": "t_embedder.interval.mlp.2",
    "LabelEmbedder_0/Embed_0": "y_embedder.embedding_table",
    "FinalLayer_0/Dense_0": "final_layer.adaLN_modulation.1",
    "FinalLayer_0/Dense_1": "final_layer.linear",
}
_BLOCK = {
    "Dense_0": "adaLN_modulation.1",
    "Dense_4": "attn.proj",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
_KEY, _QUERY, _VALUE = "Dense_1", "Dense_2", "Dense_3"
_LEAVES = {"kernel": "weight", "bias": "bias", "embedding": "weight"}
_WEIGHTS = {"params_ema": "ema", "params": "model"}
"""What the training code calls the average and the weights themselves."""


def named(content: Any, where: str) -> dict[str, dict[str, Tensor]]:
    """A checkpoint of the training code, a tree with a `train_state`, as `ema` and `model` by paths.

    Raises:
        CheckpointError: it holds no such weights.
    """
    state = content.get("train_state", content) if isinstance(content, Mapping) else {}
    trees = {ours: state[theirs] for theirs, ours in _WEIGHTS.items() if isinstance(state.get(theirs), Mapping)}
    if not trees:
        raise CheckpointError(f"{where}: a pickle, but no checkpoint of shortcut models (train_state: params_ema)")
    return {name: flax_pickle.flat(tree) for name, tree in trees.items()}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether named parameters are a shortcut DiT's."""
    return {"TimestepEmbedder_1/Dense_0/kernel", "PatchEmbed_0/Conv_0/kernel"} <= set(state)


def shortcut_arguments(
    tree: Mapping[str, Tensor], heads: int | None = None, grid: tuple[int, int] = (32, 32)
) -> dict[str, Any]:
    """The arguments of `IntervalDiT` that fit a tree, read from its names and shapes.

    Args:
        heads: attention heads, where depth and width are of no published size.
        grid: of the latents, of which the weights tell nothing; published ones are for 32 x 32.

    Raises:
        CheckpointError: not a shortcut DiT, or `heads` is needed.
    """
    try:
        patch, _, channels, width = tree["PatchEmbed_0/Conv_0/kernel"].shape
        hidden = tree["DiTBlock_0/MlpBlock_0/Dense_0/kernel"].shape[1]
        rows = len(tree["LabelEmbedder_0/Embed_0/embedding"])
    except KeyError as error:
        raise CheckpointError(f"no shortcut DiT: the parameter {error} is missing") from error
    depth = len({path.split("/")[0] for path in tree if path.startswith("DiTBlock_")})
    plain = sit.from_constructor({"learn_sigma": False})
    return plain | {
        "grid": grid,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads or sit.preset_heads(depth, width),
        "mlp_ratio": hidden / width,
        "num_classes": rows - 1,
    }


def load(network: IntervalDiT, tree: Mapping[str, Tensor]) -> IntervalDiT:
    """Put official parameters, named by their paths in the tree, into `network` and return it.

    Raises:
        CheckpointError: names or shapes differ.
    """
    rest = {path: _as_torch(path, value) for path, value in tree.items() if path != _UNUSED}
    values = {"pos_embed": network.pos_embed}  # computed, not stored
    try:
        for theirs, ours in _TOP.items():
            values |= _take(rest, theirs, ours)
        for index, block in enumerate(network.blocks):
            heads = block.get_submodule("attn").heads
            for theirs, ours in _BLOCK.items():
                values |= _take(rest, f"DiTBlock_{index}/{theirs}", f"blocks.{index}.{ours}")
            values |= _fused(rest, f"DiTBlock_{index}/", f"blocks.{index}.attn.qkv", heads)  # type: ignore[arg-type]
    except KeyError as error:
        raise CheckpointError(f"no shortcut DiT of this depth: the parameter {error} is missing") from error
    fill_all(network.state_dict(), values | rest, "the checkpoint does not fit the network")
    return network


def _take(rest: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """The parameters of one layer under our name, removed from `rest`."""
    found = {leaf: rest.pop(f"{theirs}/{leaf}") for leaf in _LEAVES if f"{theirs}/{leaf}" in rest}
    if not found:
        raise KeyError(theirs)
    return {f"{ours}.{_LEAVES[leaf]}": value for leaf, value in found.items()}


def _fused(rest: dict[str, Tensor], theirs: str, ours: str, heads: int) -> dict[str, Tensor]:
    """Queries, keys and values as one layer."""
    fused = {}
    for leaf, name in (("kernel", "weight"), ("bias", "bias")):
        q, k, v = (rest.pop(f"{theirs}{layer}/{leaf}") for layer in (_QUERY, _KEY, _VALUE))
        fused[f"{ours}.{name}"] = torch.cat([q / math.sqrt(len(q) // heads), k, v])
    return fused


def _as_torch(path: str, value: Tensor) -> Tensor:
    """Kernels [in,out] and [h,w,in,out] in the order of torch."""
    if not path.endswith("kernel"):
        return value
    return value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T
