"""Filling stacks of residual codes: which codes of a position are masked, by chance and by schedule, and the search.

"Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", Kim et al., ICML 2025 (arXiv
2412.10208). Of the D codes of a position always the last k, the finest, are masked; a state of the process is the
number k of each of the L positions, n in all. Masking more cells draws them without replacement, so that counts are
multivariate hypergeometric.

Letters: B batch, L positions, D depths, N states, C channels of a code vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Schedule: TypeAlias = Literal["circle", "cosine", "arccos", "linear"]
Search: TypeAlias = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(depth, vectors [M,C]) -> the nearest codes of that depth, int64 [M], and their code vectors [M,C]."""
_ROUNDING = 1e-9  # a product that should be a whole number may come out so much larger


def share(schedule: Schedule, r: Tensor) -> Tensor:
    """gamma(r), the share of masked cells at progress r in [0,1]: falls from 1 to 0; float64 of r's shape."""
    r = r.double()
    if schedule == "circle":
        return (1 - r * r).clamp_min(0).sqrt()
    if schedule == "cosine":
        return torch.cos(r * (math.pi / 2))
    if schedule == "arccos":
        return torch.acos(r) * (2 / math.pi)
    return 1 - r


def masked_cells(schedule: Schedule, r: Tensor, cells: int) -> Tensor:
    """ceil(gamma(r) cells), int64 of r's shape."""
    return torch.ceil(share(schedule, r) * cells - _ROUNDING).long().clamp(0, cells)


def plan(schedule: Schedule, cells: int, steps: int, literal: bool = False) -> list[int]:
    """How many cells are masked before each step and after the last: steps + 1 numbers from `cells` down to 0.

    Args:
        literal: as the schedule says, which early on may round to steps that reveal nothing; otherwise every step
            reveals a cell at least.

    Raises:
        ValueError: more steps than cells, unless `literal`.
    """
    if steps > cells and not literal:
        raise ValueError(f"{steps} steps for {cells} cells: a step reveals one at least")
    left = [cells]
    for wanted in masked_cells(schedule, torch.arange(1, steps, dtype=torch.float64) / steps, cells).tolist():
        left.append(min(left[-1] if literal else left[-1] - 1, wanted))
    return [*left, 0]


def draw_masked(noise: Tensor, n: Tensor) -> Tensor:
    """Numbers k of masked cells, int64 [B,L], that add up to n [B]: the n cells with the least noise [B,L,D]."""
    rank = noise.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)  # [B,L*D]
    return (rank < n.unsqueeze(1)).view_as(noise).sum(-1)


def visible(masked: Tensor, depth: int) -> Tensor:
    """Which depths are not masked: numbers k [...] -> bool [...,D]."""
    return torch.arange(depth, device=masked.device) < depth - masked.unsqueeze(-1)


def marginal(masked: Tensor, depth: int) -> Tensor:
    """q(k) of states [...,L] among all with the same sum: prod C(D, k_i) / C(L D, n); float64 [...]."""
    return (_log_choices(depth, masked) - _log_choose(masked.shape[-1] * depth, masked.sum(-1))).exp()


def transition(before: Tensor, after: Tensor, depth: int) -> Tensor:
    """q(after | before), where `after` has more masked: states [...,L] each, which broadcast; float64 [...]."""
    cells = before.shape[-1] * depth - before.sum(-1)
    return (_log_choices(depth - before, after - before) - _log_choose(cells, (after - before).sum(-1))).exp()


def posterior(before: Tensor, after: Tensor) -> Tensor:
    """q(before | after), where `after` has more masked: states [...,L] each, which broadcast; float64 [...]."""
    return (_log_choices(after, before) - _log_choose(after.sum(-1), before.sum(-1))).exp()


def reveal(confidence: Tensor, masked: Tensor, gumbel: Tensor, count: int, temperature: float) -> Tensor:
    """How many cells of each position become visible, int64 [B,L] <= masked: the `count` best of each sample.

    A masked cell's score is confidence + temperature Gumbel. Infinitely hot, or under equal confidence, the counts
    follow `posterior` (Gumbel top-k draws without replacement).

    Args:
        confidence: [B,L,1], or [B,L,D] for the masked cells of a position in the order in which they would be revealed.
        masked: int64 [B,L]; `count` in all at least.
        gumbel: [B,L,D].
    """
    depth = gumbel.shape[-1]
    hidden = torch.arange(depth, device=masked.device) < masked.unsqueeze(-1)  # [B,L,D]
    scores = (confidence + temperature * gumbel).masked_fill(~hidden, -torch.inf)
    chosen = scores.flatten(1).topk(count, dim=1).indices // depth  # [B,count], positions
    return torch.zeros_like(masked).scatter_add_(1, chosen, torch.ones_like(chosen))


def quantise(
    latent: Tensor, codes: Tensor, first: Tensor, count: Tensor, search: Search, most: int
) -> tuple[Tensor, Tensor]:
    """Residual codes of the depths first..first+count-1 of each position, each depth of what the ones before left.

    Each depth is searched for the positions that need it alone: how many these are is known on the CPU at no cost;
    elsewhere, where asking would wait for the device, `most` a sample are searched and the surplus is discarded.

    Args:
        latent: [B,L,C], what is coded.
        codes: int64 [B,L,D], whose other entries are copied.
        first, count: int64 [B,L].
        most: a bound on the positions of a sample whose count is not 0.

    Returns:
        The codes [B,L,D], and the sums of the new ones' vectors [B,L,C].
    """
    rest, codes = latent.flatten(0, 1), codes.flatten(0, 1).clone()  # [M,C], [M,D]
    total = torch.zeros_like(rest)
    first, last = first.flatten(), (first + count).flatten()
    for depth in range(codes.shape[1]):
        wanted = (first <= depth) & (depth < last)  # [M]
        size = int(wanted.sum()) if wanted.device.type == "cpu" else min(most, latent.shape[1]) * len(latent)
        if size == 0:
            continue
        rows = wanted.int().argsort(descending=True, stable=True)[:size]
        found, vectors = search(depth, rest[rows] - total[rows])
        hit = wanted[rows]
        codes[rows, depth] = torch.where(hit, found, codes[rows, depth])
        total[rows] += torch.where(hit.unsqueeze(1), vectors, 0)
    shape = latent.shape[:2]
    return codes.unflatten(0, shape), total.unflatten(0, shape)


def _log_choose(n: Tensor | int, k: Tensor) -> Tensor:
    """log C(n, k), -inf where there is no way."""
    n, k = torch.as_tensor(n, device=k.device).double(), k.double()
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where((k >= 0) & (k <= n), ways, -torch.inf)


def _log_choices(n: Tensor | int, k: Tensor) -> Tensor:
    """log prod_i C(n_i, k_i) over the last axis."""
    return _log_choose(n, k).sum(-1)
