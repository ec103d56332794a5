"""A time-dependent layer norm and a Linear over the concatenation of many feature maps, which is never made.

With K maps x_k of width D side by side as X, mean m and deviation s of X, and the Linear's columns W = (W_1 ... W_K),

    W (weight * (X - m) / s + bias) + b = (sum_k W_k (weight_k * x_k) - m W weight) / s + W bias + b,

so each map can be used when it is ready and then forgotten: at inference memory does not grow with K.

Letters: B batch, K maps, D width of a map, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.td_norm import TimeVectors, Vectors, along


class TdConcatLinear(nn.Module):
    """Its parameters; `start` begins a sum over maps."""

    def __init__(self, maps: int, width: int, outputs: int, times: TimeVectors):
        super().__init__()
        self.width = width
        self.slots = {"weight": times.reserve(maps * width, 1.0), "bias": times.reserve(maps * width, 0.0)}
        self.linear = nn.Linear(maps * width, outputs)

    def start(self, vectors: Vectors) -> RunningConcat:
        """An empty sum at the times of `vectors`."""
        return RunningConcat(self, vectors)


class RunningConcat:
    """The sum for one batch: `add` each of the K maps in their order, then `finish`."""

    def __init__(self, layer: TdConcatLinear, vectors: Vectors):
        self._layer = layer
        self._scale, self._bias = (vectors[layer.slots[name]] for name in ("weight", "bias"))  # 2 x [B,K*D]
        self._scales = self._scale.split(layer.width, dim=1)  # K x [B,D]
        self._columns = layer.linear.weight.split(layer.width, dim=1)  # K x [O,D]
        self._means: list[Tensor] = []
        self._norms: list[Tensor] = []
        """Of maps less their means; several times faster on the CPU than torch.var."""
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """The next map [B,...,D]."""
        k = len(self._means)
        mean = x.float().mean(-1, keepdim=True)  # [B,...,1]
        self._means.append(mean)
        self._norms.append(torch.linalg.vector_norm(x.float() - mean, dim=-1, keepdim=True))  # [B,...,1]
        part = F.linear(x * along(self._scales[k], x), self._columns[k]).float()  # [B,...,O]
        self._sum = part if self._sum is None else self._sum + part

    def finish(self) -> Tensor:
        """The Linear's outputs [B,...,O], in the dtype of the parameters but summed in float32."""
        assert self._sum is not None, "no map was added"
        spread, mean = torch.var_mean(torch.cat(self._means, dim=-1), dim=-1, correction=0, keepdim=True)
        within = torch.cat(self._norms, dim=-1).square().mean(-1, keepdim=True) / self._layer.width  # [B,...,1]
        centre = F.linear(self._scale, self._layer.linear.weight).float()  # [B,O]
        bias = self._layer.linear(self._bias).float()  # [B,O]
        centred = torch.addcmul(self._sum, mean, along(centre, self._sum), value=-1)  # [B,...,O]
        result = torch.addcmul(along(bias, centred), centred, (within + spread + 1e-5).rsqrt())
        return result.to(self._layer.linear.weight.dtype)
