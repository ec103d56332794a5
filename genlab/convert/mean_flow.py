"""Published MeanFlow parameters in genlab's IntervalDiT: those of SiT, and a second time embedding.

`sit.dit_arguments` reads the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genlab.core.weights import fill_all
from genlab.networks.interval_dit import IntervalDiT

_EMBEDDINGS = {"t_embedder.": "t_embedder.time.", "r_embedder.": "t_embedder.interval."}
"""Names of the PyTorch port, whose r_embedder is told t - r, and ours."""


def our_name(name: str) -> str:
    """The name in IntervalDiT of a parameter of the PyTorch port."""
    for theirs, ours in _EMBEDDINGS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the port's networks."""
    return {"r_embedder.mlp.0.weight", "x_embedder.proj.weight", "pos_embed"} <= set(state)


def load(network: IntervalDiT, state: Mapping[str, Tensor]) -> IntervalDiT:
    """Put the port's parameters into `network` and return it. Raises CheckpointError when names or shapes differ."""
    values = {our_name(key): value for key, value in state.items()}
    fill_all(network.state_dict(), values, "the checkpoint does not fit the network")
    return network
