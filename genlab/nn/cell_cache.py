"""Keys and values of tokens that generation has passed, kept where they were first written.

Letters: R rows, H heads, n new tokens, P tokens up to the last new one, T tokens in all, d features of a head.
"""

from __future__ import annotations

from torch import Tensor


class CellCache:
    """K and V [R,H,T,d] of each layer, allocated once, in the dtype and on the device of what is first written.

    A token may be written again, as the one that is being generated is at every step. Calls may have fewer rows than
    the cache: they are its first ones.

    Args:
        layers: how many layers write.
        rows: R, most rows of any call.
        length: T.
    """

    def __init__(self, layers: int, rows: int, length: int):
        self.layers, self.rows, self.length = layers, rows, length
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def write(self, layer: int, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Put k and v [R,H,n,d] at `start`, and return views [R,H,P,d] of all tokens up to them.

        Raises:
            ValueError: they do not fit in.
        """
        rows, heads, new, _ = k.shape
        end = start + new
        if rows > self.rows or end > self.length:
            raise ValueError(
                f"the cache is too short: it holds {self.rows} rows of {self.length} tokens, and is to take "
                f"{rows} rows up to token {end}"
            )
        kept = self._kept[layer]
        if kept is None:
            kept = tuple(x.new_empty(self.rows, heads, self.length, x.shape[-1]) for x in (k, v))  # type: ignore[assignment]
            self._kept[layer] = kept
        assert kept is not None
        for buffer, new_values in zip(kept, (k, v)):
            buffer[:rows, :, start:end].copy_(new_values)
        return kept[0][:rows, :, :end], kept[1][:rows, :, :end]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(x.numel() * x.element_size() for kept in self._kept if kept is not None for x in kept)
