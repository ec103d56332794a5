"""Keys and values of the positions so far, for attention of the next ones to all of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class KvCache:
    """One block's keys and values: allocated once, at the first call and in its dtype, and written in place.

    Args:
        length: positions that there will be in all.
    """

    def __init__(self, length: int):
        self.length = length
        self.filled = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B,H,T,d] of T new positions -> those of all positions so far, as views.

        Raises:
            ValueError: they exceed the length.
        """
        start, end = self.filled, self.filled + k.shape[2]
        if end > self.length:
            raise ValueError(f"a cache of {self.length} positions is too short for {end}")
        if self._keys is None or self._values is None:
            shape = (*k.shape[:2], self.length, k.shape[3])
            self._keys, self._values = k.new_empty(shape), v.new_empty(shape)
        self._keys[:, :, start:end] = k
        self._values[:, :, start:end] = v
        self.filled = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of T new positions [B,H,T,d] to all so far and to each other; `scale`: factor of the scores."""
        keys, values = self.extend(k, v)
        return F.scaled_dot_product_attention(q, keys, values, scale=scale)
