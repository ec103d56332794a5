"""How often a network is evaluated: what a sampler costs, whatever the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


class Evaluations:
    """Counts the rows that a network has been evaluated on; guidance in one batch of 2B rows counts 2B.

    Networks that compute a sample piece by piece do so in methods of their own, which no hook sees. Their rows are
    counted where they go through the blocks: those of the block that saw most.
    """

    def __init__(self) -> None:
        self._whole = 0
        self._through: Counter[int] = Counter()

    @property
    def rows(self) -> int:
        """So far; over the images made this is the number of function evaluations (NFE) per image."""
        return self._whole or max(self._through.values(), default=0)

    @contextmanager
    def counting(self, network: nn.Module) -> Iterator[Evaluations]:
        """Count the evaluations of `network` within the block."""

        def whole(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._whole += _rows(arguments)

        def part(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._through[id(module)] += _rows(arguments)

        with ExitStack() as stack:
            for module, hook in [(network, whole), *((block, part) for block in _blocks(network))]:
                stack.callback(module.register_forward_pre_hook(hook).remove)
            yield self


def _rows(arguments: tuple[Any, ...]) -> int:
    first = arguments[0] if arguments else None
    return len(first) if isinstance(first, Tensor) else 0


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
