"""Averages of weights."""

import copy

import pytest
import torch
from torch import nn

from genlab.training.ema import Ema, view


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


def test_view_runs_the_average_and_follows_it():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    ema = Ema(network, 0.5)
    second = view(network, ema.state)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        with torch.no_grad():
            network[0].weight.add_(1.0)
        ema.update()
        out = second(x)
        network.eval()
        with ema.swapped():
            assert torch.equal(out, network(x))
        network.train()
    assert not out.requires_grad and not second.training
    assert second[0].weight.data_ptr() == ema.state["0.weight"].data_ptr()


def test_view_without_an_average_is_the_network_without_gradients():
    network = nn.Linear(3, 3)
    second = view(network, {})
    with torch.no_grad():
        network.weight.add_(1.0)
    out = second(torch.ones(1, 3))
    assert torch.equal(out, network(torch.ones(1, 3))) and not out.requires_grad


def test_view_leaves_accelerates_autocast_to_the_first():
    network = nn.Linear(3, 3)
    ema = Ema(network, 0.5)
    network.forward = lambda x: pytest.fail("the first network was called")  # what Accelerate does to a bare network
    assert view(network, ema.state)(torch.ones(1, 3)).shape == (1, 3)
