"""What all ways of fine-tuning share: start from a base network, keep only the difference, merge it back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from genlab.core.contracts import Network
from genlab.core.errors import CheckpointError
from genlab.finetuning import difffit, lora
from genlab.finetuning.difffit import DiffFitSettings
from genlab.finetuning.settings import FullSettings, MethodSettings

_WRAPPED = ".base_layer."
"""What peft inserts into the names of layers that it wraps."""


def apply(network: Network, settings: MethodSettings) -> Network:
    """`network` in place, still the same function, with gradients for what is to be trained only.

    Raises:
        ConfigError: the network has no such parts.
    """
    if isinstance(settings, FullSettings):
        return network.requires_grad_(True)
    return difffit.apply(network, settings) if isinstance(settings, DiffFitSettings) else lora.apply(network, settings)


def difference(network: nn.Module, base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the state of `network` has that `base` has not, or has with other values or another shape: the adapter.

    Names are those of `network`.
    """
    before = base.state_dict() if isinstance(base, nn.Module) else base
    return {
        name: value.detach().cpu().clone()
        for name, value in network.state_dict().items()
        if (old := before.get(name.replace(_WRAPPED, "."))) is None
        or old.shape != value.shape
        or not old.cpu().equal(value.cpu())
    }


def restore(network: Network, settings: MethodSettings, adapter: Mapping[str, Tensor]) -> Network:
    """The base network with an adapter from `difference` attached, in place, to train on or to merge.

    Raises:
        CheckpointError: the adapter belongs to another network or other settings.
    """
    state = apply(network, settings).state_dict()
    for name, value in adapter.items():
        if name not in state or state[name].shape != value.shape:
            raise CheckpointError(
                f"the adapter's {name} {tuple(value.shape)} does not fit this network or its settings"
            )
    network.load_state_dict(dict(adapter), strict=False)
    return network


def merge(network: Network) -> Network:
    """`network` in place with its adapters taken up by its weights: the same function, plain names, full speed."""
    if any(_WRAPPED in name for name, _ in network.named_parameters()):
        network = lora.merge(network)
    return difffit.merge(network)


def kept(network: nn.Module) -> dict[str, Tensor]:
    """The adapter of a network that `apply` prepared: the present values of all that is trained, on the CPU."""
    state = network.state_dict()
    return {name: state[name].detach().cpu().clone() for name in trainable(network)}


def trainable(network: nn.Module) -> dict[str, int]:
    """The names of the parameters that have gradients, and their numbers of elements."""
    return {name: parameter.numel() for name, parameter in network.named_parameters() if parameter.requires_grad}
