"""What all quantisers with a table of code vectors share: the search, and gradients past a choice of codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 16 * 2**20  # scores held at a time: 64 MiB


def nearest(z: Tensor, table: Tensor, chunk: int | None = None) -> Tensor:
    """Index int64 [N] of the row of `table` [V,C] nearest to each of z [N,C]; of equally near ones the first.

    The nearest e maximises z.e - |e|^2 / 2. Computed in fp32 whatever the autocast, without gradients.

    Args:
        chunk: rows of z looked up at a time; default: as many as need at most 64 MiB of scores (or one row).
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        z, table = z.float(), table.float()
        bias, rows = table.square().sum(1).mul_(-0.5), chunk or max(1, _BLOCK // len(table))
        codes = torch.empty(len(z), dtype=torch.int64, device=z.device)
        for start in range(0, len(z), rows):
            part = slice(start, start + rows)
            torch.argmax(torch.addmm(bias, z[part], table.T), dim=1, out=codes[part])
        return codes


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The values of q with the gradient of z (van den Oord et al. 2017)."""
    return z + (q - z).detach()


def rotate(z: Tensor, q: Tensor) -> Tensor:
    """The values of q, with the gradient of the rotation and scaling that takes z to q, both [...,C].

    Fifty et al. 2024, section 4.2; with unit vectors u, v, w along z, q, u + v:
    (|q| / |z|) (z - 2 w (w.z) + 2 v (u.z)).
    """
    u, v = F.normalize(z.detach(), dim=-1), F.normalize(q.detach(), dim=-1)
    w = F.normalize(u + v, dim=-1)
    scale = q.detach().norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    turned = z - 2.0 * w * (w * z).sum(-1, keepdim=True) + 2.0 * v * (u * z).sum(-1, keepdim=True)
    return scale * turned


def to_vectors(maps: Tensor) -> Tensor:
    """[B,C,H,W] -> [B,H,W,C]."""
    return maps.permute(0, 2, 3, 1)


def to_maps(vectors: Tensor) -> Tensor:
    """[B,H,W,C] -> [B,C,H,W]."""
    return vectors.permute(0, 3, 1, 2)


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each sample, [B]."""
    return (a - b).square().flatten(1).mean(1)
