"""What somebody asked a tokenizer for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.orders import whole
from genlab.studio.tokenizer_entries import BuiltIn, TokenizerEntry, tokenizer_of

UPLOAD = "image"
"""The file that an order without `data` is given."""
LAST_NUMBER = 1796
"""Of the images that can be chosen; the digits have no more."""
MOST_COUNTED = 512


@dataclass(frozen=True)
class TokenizerOrder:
    """One image to be encoded and decoded, and how many others to count codes over."""

    entry: TokenizerEntry
    data: str
    """What the image is taken of; "": it was sent."""
    number: int
    """Which one."""
    counted: int
    """Images of data to count codes over."""

    @classmethod
    def of(cls, wants: Mapping[str, Any]) -> TokenizerOrder:
        """The order that said `wants`. Raises GenlabError if its tokenizer is no longer there."""
        return place(tokenizer_of(wants["tokenizer"]), wants["data"], wants["number"], wants["counted"])

    def wants(self) -> dict[str, Any]:
        """The order in plain values, from which `of` makes it again in another process."""
        plain = {"data": self.data, "number": self.number, "counted": self.counted}
        return {"tokenizer": self.entry.wants(), **plain}

    @property
    def counted_data(self) -> BuiltIn | None:
        """Whose codes are counted: the data that the image is of, else the tokenizer's own, else what fits it."""
        return self.entry.samples.get(self.data) or next(iter(self.entry.samples.values()), None)


def place(entry: TokenizerEntry, data: Any, number: Any, counted: Any) -> TokenizerOrder:
    """The order for image `number` of `data`, or for one that was sent if `data` is "".

    Raises:
        GenlabError: anything that is not a sensible value, in words for who asked.
    """
    if not isinstance(data, str) or (data and data not in entry.samples):
        offered = ", ".join(entry.samples) or "none of the built-in data"
        size = entry.spec.image_size
        raise GenlabError(f"image: {str(data)[:40]!r} is not offered; for {size} × {size} pixels there is {offered}")
    number = whole(number, "image number", 0, LAST_NUMBER)
    return TokenizerOrder(entry, data, number, whole(counted, "images to count codes over", 0, MOST_COUNTED))
