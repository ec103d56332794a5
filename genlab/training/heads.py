"""A module trained together with a head that only its training needs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from genlab.core.contracts import Network

_TRAINED = "trained."


class WithHead(Network):
    """One role's network: `trained`, which is exported, and `head`, which checkpoints alone hold.

    Subclasses call both in their forward, so that DDP sees every parameter's gradient.
    """

    def __init__(self, trained: nn.Module, head: nn.Module):
        super().__init__()
        self.trained, self.head = trained, head

    def no_decay(self) -> set[str]:
        """Those of `trained`."""
        own = self.trained.no_decay() if isinstance(self.trained, Network) else set()
        return {f"{_TRAINED}{name}" for name in own}


def without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A role's saved tensors as those of its network alone, whether it was trained with a head or not."""
    own = {name.removeprefix(_TRAINED): value for name, value in tensors.items() if name.startswith(_TRAINED)}
    return own or dict(tensors)
