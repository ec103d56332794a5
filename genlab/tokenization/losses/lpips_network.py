"""The network of LPIPS (Zhang et al. 2018), and where the weights of its trunks come from."""

from __future__ import annotations

import warnings
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from genlab.core.public_weights import FoundWeights, WeightsFile

LpipsNet: TypeAlias = Literal["alex", "vgg", "squeeze"]

_TORCHVISION = "https://download.pytorch.org/models"
LPIPS_TRUNKS: dict[LpipsNet, WeightsFile] = {
    "alex": WeightsFile(
        "AlexNet for LPIPS", "alexnet-owt-7be5be79.pth", f"{_TORCHVISION}/alexnet-owt-7be5be79.pth", "7be5be79", 244
    ),
    "vgg": WeightsFile("VGG16 for LPIPS", "vgg16-397923af.pth", f"{_TORCHVISION}/vgg16-397923af.pth", "397923af", 553),
    "squeeze": WeightsFile(
        "SqueezeNet for LPIPS",
        "squeezenet1_1-b8a52dc0.pth",
        f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
        "b8a52dc0",
        5,
    ),
}
SMALLEST_SIDE: dict[LpipsNet, int] = {"alex": 31, "vgg": 16, "squeeze": 17}  # below it a pooling has nothing to pool


def lpips_network(net: LpipsNet) -> Any:
    """The package's module `lpips.LPIPS` with its official heads and a random trunk; nothing is downloaded."""
    import lpips

    with warnings.catch_warnings():  # torchvision deprecates an argument that the package still gives
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def filled_network(net: LpipsNet, found: FoundWeights) -> Any:
    """The same with the trunk of `found`, frozen and in eval mode (its dropout stays off).

    Raises:
        WeightsUnavailable: weights of another network.
    """
    network = lpips_network(net)
    found.load_into(network.net, _trunk_state(found.read(), network.net))
    return network.eval().requires_grad_(False)


def _trunk_state(state: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """torchvision's `features.N.*` under the package's names `sliceK.N.*`; those are accepted too."""
    keys = trunk.state_dict().keys()
    if keys <= state.keys():
        return {key: state[key] for key in keys}
    origin = {key: "features." + key.partition(".")[2] for key in keys}
    return {key: state[old] for key, old in origin.items() if old in state}
