"""Mamba-2: a causal layer whose memory is one matrix for each head ("Transformers are SSMs", Dao & Gu 2024).

The scan is done in chunks, with matrix products inside and a short recurrence between them: exact, and in plain
PyTorch. On a GPU the kernel of mamba-ssm takes its place where that package is installed.

Letters: B batch, L positions, D width, E = 2 D inner width, M heads, P = 64 their width, N state size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD, _KERNEL = 64, 4
_KERNEL_CHUNK = 256  # of mamba-ssm's kernel


@dataclass
class Memory:
    """What a sequence leaves behind; both None before its first position."""

    recent: Tensor | None = None
    """[B,3,E+2N], the last inputs of the convolution."""
    state: Tensor | None = None
    """float32 [B,M,P,N]."""


class Mamba2(nn.Module):
    """Projection, short causal convolution, scan, gated RMS norm, projection; parameter names are mamba-ssm's.

    Args:
        width: D, divisible by 32.
        state_size: N.
    """

    def __init__(self, width: int, state_size: int = 64):
        super().__init__()
        inner = 2 * width
        self.heads, self.state_size = inner // _HEAD, state_size
        convolved = inner + 2 * state_size
        self.sizes = [inner, convolved, self.heads]
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        """Rows: gate (E), convolved values and their keys and queries (E, N, N), steps (M)."""
        self.conv1d = nn.Conv1d(convolved, convolved, _KERNEL, groups=convolved)
        step = torch.empty(self.heads).uniform_(math.log(1e-3), math.log(0.1)).exp_().clamp_(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus undoes it
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log_())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, u: Tensor, memory: Memory | None = None) -> Tensor:
        """[B,L,D] -> [B,L,D]; a memory is read and moved on, so that a sequence may come in parts."""
        gate, convolved, step = self.in_proj(u).split(self.sizes, dim=-1)
        before = memory.recent if memory is not None else None
        if before is None:
            before = convolved.new_zeros(len(u), _KERNEL - 1, convolved.shape[2])
        convolved = torch.cat([before, convolved], dim=1)  # [B,3+L,E+2N]
        values, keys, queries = F.silu(self.conv1d(convolved.mT).mT).split(
            [self.sizes[0], self.state_size, self.state_size], dim=-1
        )
        with _full_precision(u):
            step = F.softplus(step.float() + self.dt_bias.float())  # [B,L,M]
            decay = -self.A_log.float().exp()  # [M]
            values = values.float().unflatten(2, (self.heads, _HEAD))  # [B,L,M,P]
            start = memory.state if memory is not None else None
            y, state = scan(values, step, decay, keys.float(), queries.float(), start)
            y = torch.addcmul(y, values, self.D.float().unsqueeze(1)).flatten(2)  # [B,L,E]
            y = self.norm(y * F.silu(gate.float()))
        if memory is not None:
            memory.recent, memory.state = convolved[:, 1 - _KERNEL :], state
        return self.out_proj(y.to(u.dtype))


def scan(
    values: Tensor, step: Tensor, decay: Tensor, keys: Tensor, queries: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t decay) h_{t-1} + step_t values_t keys_t^T and y_t = h_t queries_t.

    Args:
        values: float32 [B,L,M,P].
        step: float32 [B,L,M], not below 0.
        decay: float32 [M], below 0.
        keys, queries: float32 [B,L,N], the same for all heads.
        start: [B,M,P,N], the state before the first position; None: zero.

    Returns:
        y [B,L,M,P], and the state [B,M,P,N] after the last position.
    """
    if values.is_cuda and (kernel := _mamba_ssm()) is not None:
        return kernel(
            values, step, decay, keys.unsqueeze(2), queries.unsqueeze(2), _KERNEL_CHUNK,
            initial_states=start, return_final_states=True,
        )  # fmt: skip
    length = values.shape[1]
    chunk = min(64 if values.is_cuda else 32, length)
    padding = -length % chunk

    def chunks(x: Tensor) -> Tensor:
        """[B,L,...] -> [B,chunks,Q,...]; padding has steps of 0, so it changes nothing."""
        return F.pad(x, [0, 0] * (x.dim() - 2) + [0, padding]).unflatten(1, (-1, chunk))

    logs = chunks(step * decay)  # [B,c,Q,M]: the logarithm of each position's decay
    x = chunks(values * step.unsqueeze(-1))  # [B,c,Q,M,P]
    keys, queries = chunks(keys), chunks(queries)  # 2 x [B,c,Q,N]
    between = _decays(logs.mT)  # [B,c,M,Q,Q]
    left = between[..., -1, :].mT.unsqueeze(-1)  # [B,c,Q,M,1]
    written = ((x * left).flatten(3).mT @ keys).unflatten(2, x.shape[3:])  # [B,c,M,P,N]
    kept = logs.sum(2).exp()[..., None, None]  # [B,c,M,1,1]
    state = torch.zeros_like(written[:, 0]) if start is None else start  # [B,M,P,N]
    before = []
    for number in range(written.shape[1]):
        before.append(state)
        state = torch.addcmul(written[:, number], kept[:, number], state)
    inherited = (queries @ torch.stack(before, dim=1).flatten(2, 3).mT).view(x.shape)  # [B,c,Q,M,P]
    own = ((queries @ keys.mT).unsqueeze(2) * between) @ x.transpose(2, 3)  # [B,c,M,Q,P]
    y = torch.addcmul(own.transpose(2, 3), inherited, logs.cumsum(2).exp().unsqueeze(-1))  # [B,c,Q,M,P]
    return y.flatten(1, 2)[:, :length], state


def _decays(logs: Tensor) -> Tensor:
    """[...,Q] -> [...,Q,Q]: what is left at t of position r, the product of the decays after r up to t; 0 for t < r.

    Each sum is made of its own terms: differences of sums from the start would cancel where decays are strong.
    """
    size = logs.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=logs.device).tril()
    terms = logs.unsqueeze(-1).expand(*logs.shape, size).masked_fill(~lower.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~lower, -torch.inf).exp()


@cache
def _mamba_ssm() -> Any | None:
    """The kernel of mamba-ssm, if it is installed."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where x is; the state needs float32."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
