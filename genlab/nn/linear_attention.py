"""Hybrid attention over sequences of images: softmax inside an image, gated linear attention to the images before it.

"ARFlow: Autoregressive Flow with Hybrid Linear Attention", Hui et al. 2025 (arXiv 2501.16085), section 3.3. What an
image leaves behind is a matrix per head, so the past costs the same however long it is.

Letters: B batch, S images in a sequence, N tokens of an image, D width, H heads, d = D/H.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where x is; decays and states need float32."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def written(k: Tensor, v: Tensor) -> Tensor:
    """What an image adds to the state: k^T v / sqrt(d), for k and v [...,N,d] -> [...,d,d] float32."""
    return k.float().mT @ v.float() * k.shape[-1] ** -0.5


def states_before(
    writes: Tensor, decay: Tensor, start: Tensor | None = None, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The states that S images read, and the one after the last.

    State' = exp(decay) State + write, unrolled: image j reads the sum over i < j of exp(the decays of the images
    between) write_i, all at once as a lower triangular mixture.

    Args:
        writes: [B,S,H,d,d].
        decay: [B,S,H], not above 0: the log of what each image keeps of the state before it.
        start: [B,H,d,d], the state before the first image; None: empty.
        same: bool [B,S,S], which images (columns) an image (rows) may know of; None: all.

    Returns:
        [B,S,H,d,d], and [B,H,d,d], which knows of all.
    """
    total = F.pad(decay.cumsum(1), (0, 0, 1, 0))  # [B,S+1,H]: of all images before
    images = decay.shape[1]
    span = total[:, :, None] - total[:, None, 1:]  # [B,S+1,S,H]: of the images after i and before j
    past = torch.ones(images + 1, images, dtype=torch.bool, device=decay.device).tril(-1)  # [S+1,S]
    known = past[None] if same is None else past & F.pad(same, (0, 0, 0, 1), value=True)  # [B|1,S+1,S]
    weight = span.masked_fill(~known[..., None], -torch.inf).exp()  # [B,S+1,S,H]
    states = torch.einsum("bjih,bihde->bjhde", weight, writes)  # [B,S+1,H,d,d]
    if start is not None:
        states = states + total.exp()[..., None, None] * start[:, None]
    return states[:, :-1], states[:, -1]


def attend(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v + exp(the decays of the tokens up to here) q State.

    q, k, v [B,S,H,N,d], log-decays of tokens [B,S,H,N] float32 and State [B,S,H,d,d] float32 (None: empty)
    -> [B,S,H,N,d] float32.
    """
    inner = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))  # [B*S,H,N,d]
    inner = inner.view(q.shape).float()
    if state is None:
        return inner
    return torch.addcmul(inner, decay.cumsum(-1).exp().unsqueeze(-1), q.float() @ state)


class HybridAttention(nn.Module):
    """The attention of ARFlow's block; all its projections in one matrix, and no biases.

    Args:
        width: D, divisible by `heads`.
        heads: H.
        norm_eps: of the norms of queries, keys and values, and of each head's output.
        gate_normalizer: what the logarithms of decays are divided by; the higher, the longer is the memory.
    """

    def __init__(self, width: int, heads: int, norm_eps: float = 1e-6, gate_normalizer: float = 16.0):
        super().__init__()
        self.width, self.heads = width, heads
        self.norm_eps, self.gate_normalizer = norm_eps, gate_normalizer
        self.in_proj = nn.Linear(width, 4 * width + heads, bias=False)
        """Rows: query, key, value, output gate (D each), decay (H)."""
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, c: Tensor, state: Tensor | None = None, same: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens x [B,S,N,D] under conditions c [B,S,N|1,D] -> [B,S,N,D], and with `keep` the state [B,H,d,d] after.

        Args:
            state, same: see `states_before`; None: nothing came before, all images are of one sequence.
        """
        q, k, v, gate, decay = self._project(x, c)
        single = x.shape[1] == 1
        with _full_precision(x):
            kept = decay.mean(-1)  # [B,S,H]
            before = None if state is None else state[:, None]  # [B,1,H,d,d]
            after = None
            if single and keep:
                write = written(k, v)[:, 0]  # [B,H,d,d]
                after = write if state is None else torch.addcmul(write, kept[:, 0, :, None, None].exp(), state)
            elif not single:
                before, after = states_before(written(k, v), kept, state, same)  # [B,S,H,d,d], [B,H,d,d]
            o = attend(q, k, v, decay, before)  # [B,S,H,N,d]
        o = F.rms_norm(o, o.shape[-1:], eps=self.norm_eps).transpose(2, 3).flatten(3)  # [B,S,N,D]
        return self.out_proj(F.silu(gate) * o.to(gate.dtype)), after

    def _project(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v [B,S,H,N,d], normalised over the full width; gate [B,S,N,D]; log-decays [B,S,H,N] float32."""
        qkv, gate, decay = self.in_proj(x).split([3 * self.width, self.width, self.heads], dim=-1)
        qkv = F.rms_norm(qkv.unflatten(-1, (3, self.width)), (self.width,), eps=self.norm_eps)  # [B,S,N,3,D]
        q, k, v = qkv.unflatten(-1, (self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)  # 3 x [B,S,H,N,d]
        decay = decay + F.linear(c, self.in_proj.weight[4 * self.width :])  # [B,S,N,H]
        return q, k, v, gate, F.logsigmoid(decay.float()).mT / self.gate_normalizer
