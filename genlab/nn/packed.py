"""Linears on the CPU with weights in the order that oneDNN's matrix product reads, for as long as a context lasts.

torch multiplies float32 matrices on the CPU by MKL, which uses half of the vector width on processors that are not
Intel's; oneDNN has no such preference. Outputs agree to rounding. The operators are those that torch.compile's CPU
backend uses for frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.mlp import Mlp

_ROWS = 1024
"""For which the order is chosen; any number of rows may come."""
_TOKENS = 8
"""Rows of a sample from which it is worth packing; conditions have one."""


@contextmanager
def packed(network: nn.Module) -> Iterator[None]:
    """Within the block, the Linears of a float32 network on the CPU multiply by packed copies of their weights.

    For inference: weights must not change meanwhile. Where gradients or another precision are asked for, and on other
    devices, layers compute as ever. The copies take as much memory as the weights. Blocks may be nested or overlap;
    the first one counts.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if type(module) is Mlp and _packs(module.fc1) and "forward" not in vars(module):
                _replace(stack, module, partial(_mlp, module, _Product(module.fc1, gelu=True)))
            elif type(module) is nn.Linear and _packs(module) and "forward" not in vars(module):
                _replace(stack, module, _Product(module))
        yield


class _Product:
    """Linear, or Linear and GELU in its tanh approximation, of one layer; packs its weights when tokens first come."""

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        self._layer, self._gelu = layer, gelu
        self._weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        tokens = x.dim() > 2 and x.shape[-2] >= _TOKENS  # whatever the batch: its size must not change a sample
        other = x.dtype != torch.float32 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if other or not tokens:
            out = F.linear(x, layer.weight, layer.bias)
            return F.gelu(out, approximate="tanh") if self._gelu else out
        if self._weight is None:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if self._gelu else ("none", [], "")
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, layer.bias, *activation)
        return result


def _mlp(mlp: Mlp, hidden: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return mlp.fc2(hidden(x))


def _packs(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
    )


def _replace(stack: ExitStack, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Give the module another forward until the stack closes."""
    vars(module)["forward"] = forward
    stack.callback(vars(module).pop, "forward", None)
