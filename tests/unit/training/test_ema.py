"""Averages of weights."""

import copy

import torch
from torch import nn

from genlab.training.ema import Ema


def test_the_average_follows_its_definition():
    network = nn.Linear(3, 2)
    ema = Ema(network, decay=0.9)
    expected = network.weight.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            network.weight += torch.randn_like(network.weight)
        ema.update()
        expected = 0.9 * expected + 0.1 * network.weight.detach()
    assert torch.allclose(ema.state["weight"], expected, atol=1e-6)


def test_warm_up_forgets_the_start():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    ema = Ema(network, decay=0.9999, warmup=True)
    nn.init.constant_(network.weight, 0.0)
    for _ in range(50):
        ema.update()
    assert ema.state["weight"].item() < 1e-6


def test_swapping_is_exact_and_undone():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ema = Ema(network, decay=0.5)
    network(torch.randn(8, 4))
    with torch.no_grad():
        network[0].weight += 1
    live, average = copy.deepcopy(network.state_dict()), {k: v.clone() for k, v in ema.state.items()}
    with ema.swapped():
        assert all(torch.equal(value, average[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, live[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in ema.state.items())


def test_buffers_are_copied_not_averaged():
    network = nn.BatchNorm1d(2)
    ema = Ema(network, decay=0.99)
    network(torch.randn(16, 2) + 3)
    ema.update()
    assert torch.equal(ema.state["running_mean"], network.running_mean)
