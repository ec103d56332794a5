"""Starting from a trained network with other classes, or on another grid.

Letters: D width, T tokens, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.core.contracts import Network
from genlab.core.errors import CheckpointError
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
from genlab.nn.embed import sincos_1d
from samplers.noise import spawn

_TABLE_STD = 0.02


def scaled_positions(width: int, base: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Sine-cosine positions [T,D] float64 of `grid`, at the coordinates that its places had on the `base` grid.

    So a place in the image keeps the phase that it had when the network was trained (DiffFit, Xie et al. 2023).
    """
    rows, columns = (torch.arange(new, dtype=torch.float32) * (old / new) for old, new in zip(base, grid))
    row = sincos_1d(width // 2, rows).repeat_interleave(len(columns), dim=0)  # [T,D/2]
    column = sincos_1d(width // 2, columns).repeat(len(rows), 1)  # [T,D/2]
    return torch.cat([column, row], dim=1)


@torch.no_grad()
def transfer(network: Network, base: Network, seed: int = 0) -> Network:
    """`network` in place with the weights of `base`, of the same kind, which may know other classes or another grid.

    Class tables of another size are drawn anew (standard deviation 0.02) but for the row of "no class", which is kept;
    tables of positions of another grid are computed with scaled coordinates.

    Raises:
        CheckpointError: they differ in anything else.
    """
    target, source = network.state_dict(), base.state_dict()
    tables = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    if missing := sorted(set(target) ^ set(source)):
        raise CheckpointError(f"finetune: the two networks are built differently, first in {missing[0]}")
    for name, value in target.items():
        old = source[name]
        if old.shape == value.shape:
            value.copy_(old)
        elif name in tables and old.shape[1:] == value.shape[1:]:
            rows = spawn(seed, range(len(value))).normal(*value.shape[1:]) * _TABLE_STD
            value.copy_(rows)
            if len(value) == network.null_label + 1 and len(old) == base.null_label + 1:
                value[-1].copy_(old[-1])
        elif name == "pos_embed" and isinstance(network, DiT | ARFlow) and isinstance(base, DiT | ARFlow):
            value.copy_(scaled_positions(value.shape[-1], base.token_grid, network.token_grid))
        else:
            raise CheckpointError(
                f"finetune: {name} has shape {tuple(old.shape)} there and {tuple(value.shape)} here; only classes and "
                "the grid may differ"
            )
    return network
