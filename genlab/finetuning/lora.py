"""LoRA through peft: low-rank changes of Linear layers, with the class table trained beside them.

"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings


class LoraSettings(Settings):
    """Low-rank adapters and where they are."""

    name: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    """Rank of each change; parameters go up with it."""
    alpha: PositiveInt = 16
    """The change is multiplied by alpha / rank."""
    targets: tuple[str, ...] = Field(("qkv", "proj", "fc1", "fc2"), min_length=1)
    """Last parts of the names of the Linear layers (or convolutions) that have adapters."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' inputs, in training."""
    class_table: bool = True
    """Train the table of classes; needed for new classes."""
    seed: int = Field(0, ge=0)
    """Of the adapters' first values."""


def apply(network: Network, settings: LoraSettings) -> Network:
    """`network` with adapters that change nothing yet, in place, and with gradients for these (and classes) only.

    Raises:
        ConfigError: no layer has one of the target names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=list(settings.targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            inject_adapter_in_model(config, network)
        except ValueError as error:
            raise ConfigError(f"finetune.method.targets: {str(error).splitlines()[0]}") from error
    for module in network.modules():
        if settings.class_table and isinstance(module, nn.Embedding):
            module.requires_grad_(True)
    return network


def merge(network: Network) -> Network:
    """`network` in place with its adapters added to the weights: plain layers and names, as fast as before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())
    return network.requires_grad_(True)
