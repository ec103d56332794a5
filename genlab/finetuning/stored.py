"""Fine-tuned networks between memory and disk: how one begins, and how it is kept whole or as a difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from genlab.core.contracts import Network
from genlab.core.errors import CheckpointError
from genlab.core.weights import checksum, fill_all
from genlab.finetuning import adapters
from genlab.finetuning.settings import FinetuneSettings, FullSettings
from genlab.finetuning.transfer import transfer


class Origin(FinetuneSettings):
    """What a fine-tuned generator's description says of where it comes from, under `finetune`."""

    seed: int
    """Of the class rows that the base did not have."""
    checksum: str
    """Of the base's network (core/weights.py)."""

    @property
    def has_adapter(self) -> bool:
        """Whether it differs from its base in a part only."""
        return not isinstance(self.method, FullSettings)


def begin(network: Network, base: Network, settings: FinetuneSettings, seed: int) -> Origin:
    """Give `network` the weights of `base` and prepare it, in place, for training by the method of `settings`.

    Raises:
        CheckpointError: the base's network is of another kind or size.
        ConfigError: the method does not suit the network.
    """
    _start(network, base, settings.base, seed)
    adapters.apply(network, settings.method)
    return Origin(base=settings.base, method=settings.method, seed=seed, checksum=checksum(base))


def origin(description: Mapping[str, Any], where: str) -> Origin | None:
    """What a description says of its base; None for a generator that was trained from noise. Raises CheckpointError."""
    if description.get("finetune") is None:
        return None
    try:
        return Origin.model_validate_json(json.dumps(description["finetune"]), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{where}: its finetune section is damaged ({error.errors()[0]['msg']})") from error


def split(
    network: Network, weights: Mapping[str, Tensor], begun: Origin, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a network in training, as a plain network's and as the adapter alone. Uses up `network`.

    Raises:
        CheckpointError: they do not fit the network under the method.
    """
    fill_all(adapters.apply(network, begun.method).state_dict(), weights, where)
    adapter = adapters.kept(network) if begun.has_adapter else {}
    return {name: value.contiguous() for name, value in adapters.merge(network).state_dict().items()}, adapter


def join(network: Network, base: Network, adapter: Mapping[str, Tensor], begun: Origin, where: str) -> Network:
    """`network` in place as `base` with an adapter merged: what `split` gave as the plain network.

    Raises:
        CheckpointError: another base than the adapter was trained on, or an adapter of something else.
    """
    if (found := checksum(base)) != begun.checksum:
        raise CheckpointError(
            f"{where}: a difference from {begun.base} with checksum {begun.checksum}, which now has {found}; "
            "restore that base, or take an export with network.safetensors"
        )
    _start(network, base, begun.base, begun.seed)
    return adapters.merge(adapters.restore(network, begun.method, adapter))


def _start(network: Network, base: Network, name: str, seed: int) -> None:
    if type(network) is not type(base):
        raise CheckpointError(
            f"finetune.base: {name} is a {type(base).__name__}, the recipe's network a {type(network).__name__}; "
            "they must be of one kind"
        )
    try:
        transfer(network, base, seed)
    except CheckpointError as error:
        raise CheckpointError(f"finetune.base={name}: {str(error).removeprefix('finetune: ')}") from None
