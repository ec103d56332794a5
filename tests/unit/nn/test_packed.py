"""Packed Linears compute what they did before, and leave no trace."""

import pytest
import torch

from genlab.networks.arflow import ARFlow
from genlab.networks.dimr import DiMR
from genlab.networks.dit import DiT
from genlab.nn.packed import packed

SIZES = {"grid": (8, 8), "channels": 3, "width": 32, "depth": 2, "heads": 2, "num_classes": 5}
STAGES = [
    {"block": "transformer", "width": 32, "depth": 3, "patch": 2, "heads": 2},
    {"block": "convnext", "width": 16, "depth": 3, "kernel": 3},
]
NETWORKS = {
    "dit": lambda: DiT(**SIZES),
    "swiglu": lambda: DiT(**SIZES, swiglu=True, rms_norm=True, rope=True),
    "arflow": lambda: ARFlow(**SIZES),
    "dimr": lambda: DiMR((8, 8), 3, STAGES, num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_agree_and_the_network_is_itself_again(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x, t, label = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected = network(x, t, label)
        with packed(network):
            torch.testing.assert_close(network(x, t, label), expected, rtol=1e-5, atol=1e-5)
            with packed(network):  # the inner one has nothing to do, and undoes nothing
                pass
            assert any("forward" in vars(module) for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())


def test_gradients_and_half_precision_go_the_usual_way():
    torch.manual_seed(0)
    network = DiT(**SIZES)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    x, t, label = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 4, 5])
    with packed(network):
        network(x, t, label).sum().backward()
        assert network.blocks[0].mlp.fc1.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert network(x, t, label).isfinite().all()
