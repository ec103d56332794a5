"""DiffFit: fine-tune biases, class table and new scales of sub-layers; everything else stays as it was trained.

"DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning", Xie et al.,
ICCV 2023 (arXiv 2304.06648). A scale multiplies the output of a Linear, bias included, and starts at one, so the
network starts as it was; afterwards scales merge into the weights, and the network is as fast as before.

Letters: D width of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings

Placement: TypeAlias = Literal["block", "attn", "mlp"]


class DiffFitSettings(Settings):
    """What is trained of a network."""

    name: Literal["difffit"] = "difffit"
    placement: tuple[Placement, ...] = ("block",)
    """Where there are scales: block (each branch, 2 D a block), attn (projections, 4 D), mlp (its output, D)."""
    blocks: tuple[NonNegativeInt, ...] | None = None
    """Which transformer blocks have scales; by default all."""
    biases: bool = True
    """Train all biases."""
    norms: bool = True
    """Train weights and biases of norms, where they have any."""
    class_table: bool = True
    """Train the table of classes; needed for new classes."""


class Site(NamedTuple):
    """Where a scale is."""

    owner: nn.Module
    """The module whose parameter it is."""
    name: str
    linear: nn.Linear
    """The layer whose outputs it multiplies."""


def apply(network: Network, settings: DiffFitSettings) -> Network:
    """`network` with scales of one, in place, and with gradients for what is to be trained only.

    Raises:
        ConfigError: it has no such blocks.
    """
    found = list(sites(network, settings))
    for site in found:
        weight = site.linear.weight
        scale = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
        site.owner.register_parameter(site.name, scale)
        site.linear.register_forward_hook(_Scale(site.owner, site.name))
    scales = {id(getattr(site.owner, site.name)) for site in found}
    chosen = {id(parameter) for parameter in _chosen(network, settings)}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in scales or id(parameter) in chosen)
    return network


def sites(network: nn.Module, settings: DiffFitSettings) -> Iterator[Site]:
    """The scales that `settings` ask for, block by block. Raises ConfigError."""
    blocks = [
        module
        for module in network.modules()
        if isinstance(getattr(module, "attn", None), nn.Module) and isinstance(getattr(module, "mlp", None), nn.Module)
    ]
    if settings.placement and not blocks:
        raise ConfigError(
            f"finetune.method.placement: {type(network).__name__} has no transformer blocks for scales; set it to [], "
            "which trains biases, norms and classes, or take lora"
        )
    chosen = range(len(blocks)) if settings.blocks is None else settings.blocks
    if any(index >= len(blocks) for index in chosen):
        raise ConfigError(
            f"finetune.method.blocks: got {max(chosen)}, but the network has blocks 0 to {len(blocks) - 1}"
        )
    for index in chosen:
        block = blocks[index]
        attn, mlp = (_linears(getattr(block, part)) for part in ("attn", "mlp"))
        if "block" in settings.placement:
            yield Site(block, "gamma1", attn[-1])
            yield Site(block, "gamma2", mlp[-1])
        if "attn" in settings.placement:
            yield Site(block.get_submodule("attn"), "gamma1", attn[0])
            yield Site(block.get_submodule("attn"), "gamma2", attn[-1])
        if "mlp" in settings.placement:
            yield Site(block.get_submodule("mlp"), "gamma", mlp[-1])


@torch.no_grad()
def merge(network: Network) -> Network:
    """`network` in place without scales, which its weights take up: the same function, plain names."""
    for module in network.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Scale) and isinstance(module, nn.Linear):
                scale = hook.scale()
                module.weight.mul_(scale[:, None])
                if module.bias is not None:
                    module.bias.mul_(scale)
                delattr(hook.owner, hook.name)
                del module._forward_hooks[key]
    return network.requires_grad_(True)


class _Scale:
    """A forward hook that multiplies by a parameter of another module; a copied network's belongs to the copy."""

    def __init__(self, owner: nn.Module, name: str):
        self.owner, self.name = owner, name

    def scale(self) -> Tensor:
        return getattr(self.owner, self.name)

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * self.scale().to(out.dtype)


def _chosen(network: nn.Module, settings: DiffFitSettings) -> Iterator[nn.Parameter]:
    """The network's own parameters that are trained, by the kind of their module."""
    for module in network.modules():
        is_norm, is_table = "norm" in type(module).__name__.lower(), isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm:
                chosen = settings.norms or (settings.biases and name == "bias")
            else:
                chosen = (settings.class_table and is_table) or (settings.biases and name == "bias")
            if chosen:
                yield parameter


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
