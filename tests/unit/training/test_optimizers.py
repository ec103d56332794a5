"""Optimizers, parameter groups and schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from genlab.core.contracts import Network
from genlab.training.optimizers import AdamW, Lion, Muon, RAdam, Schedule


class Small(Network):
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, label):
        return self.linear(self.norm(self.embed(label)))


@pytest.mark.parametrize("settings", [kind(weight_decay=0.1) for kind in (AdamW, RAdam, Lion, Muon)])
def test_only_matrices_decay_and_every_parameter_moves(settings):
    network = Small()
    optimizer = settings.build(network, lr=1e-2)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decayed = {name for name, p in network.named_parameters() if decay[id(p)] > 0}
    assert decayed == {"linear.weight"}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    network(torch.tensor([0, 1, 2])).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in network.named_parameters() if name != "norm.bias")


@given(st.integers(0, 1000), st.sampled_from(["constant", "cosine", "linear"]), st.integers(0, 1500), st.floats(0, 1))
def test_schedules_stay_in_range_and_end_where_they_should(warmup, decay, start, final):
    total = 2000
    schedule = Schedule(warmup=warmup, decay=decay, decay_start=start, final=final)
    factors = [schedule.factor(images, total) for images in range(0, total + 1, 50)]
    assert all(0 < factor <= 1 or factor == final for factor in factors)
    warm = [f for images, f in zip(range(0, total + 1, 50), factors) if images < warmup]
    assert warm == sorted(warm)
    after = factors[len(warm) :]
    assert after == sorted(after, reverse=True)
    assert factors[-1] == pytest.approx(1.0 if decay == "constant" else final)


def test_an_inverse_root_falls_from_its_start_whatever_the_total():
    schedule = Schedule(warmup=99, decay="inverse_root", decay_start=1000)
    assert schedule.factor(49, 10**9) == 0.5
    assert schedule.factor(1000, 2000) == schedule.factor(500, 2000) == 1.0
    assert schedule.factor(4000, 5000) == schedule.factor(4000, 10**9) == 0.5
    with pytest.raises(ValueError, match="falls from decay_start on"):
        Schedule(decay="inverse_root")


def test_weight_decay_rises_along_half_a_cosine():
    settings = AdamW(weight_decay=0.05, weight_decay_end=0.08)
    assert [settings.decay_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.05, 0.065, 0.08])
    assert AdamW(weight_decay=0.05).decay_at(0.7) == 0.05
