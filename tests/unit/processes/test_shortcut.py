"""Shortcut models: two half steps as one, which steps are guided, and what is drawn."""

import pytest
import torch
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.networks.dit import DiT
from genlab.processes.mean_flow import as_rows
from genlab.processes.mean_flow_sampling import MeanFlowSampling
from genlab.processes.shortcut import Shortcut, ShortcutConfig, state
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=1, grid=(2, 2), image_size=2)


class ToAPoint(Network):
    """The velocity to a point of each class: to 1 + label, or to 0 without one. Remembers how it was called."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, label, level):
        self.calls.append((label.tolist(), level.tolist()))
        point = as_rows(torch.where(label == self.null_label, 0, 1 + label), x)
        return (point - x) / (1 - as_rows(t, x))


def test_one_step_goes_where_two_halves_of_a_straight_path_go():
    x, t, label = torch.randn(3, *SPEC.shape), torch.tensor([0.0, 0.5, 0.75]), torch.tensor([0, 1, 3])
    level = torch.tensor([0.0, 1.0, 2.0])
    network = ToAPoint()
    two = Shortcut(8, clip=100.0).two_halves(network, x, t, level, label)
    torch.testing.assert_close(two, network(x, t, label, level))
    assert [levels for _, levels in network.calls[:2]] == [[1, 2, 3], [1, 2, 3]]


def test_states_and_velocities_are_kept_in_bounds():
    x, t, label = torch.full((1, *SPEC.shape), 3.0), torch.tensor([0.5]), torch.tensor([2])
    velocity = Shortcut(8, clip=0.25).two_halves(ToAPoint(), x * 10, t, torch.tensor([1.0]), label)
    assert velocity.abs().max() == 0.25


def test_only_the_finest_steps_are_guided():
    network, x, t = ToAPoint(), torch.zeros(3, *SPEC.shape), torch.zeros(3)
    out = Shortcut(8, guidance=3.0).velocity(network, x, t, torch.tensor([3.0, 2.0, 3.0]), torch.tensor([0, 0, 3]))
    assert out[:, 0, 0, 0].tolist() == [3.0, 1.0, 0.0]
    assert network.calls == [([0, 0, 3, 3, 3], [3, 2, 3, 3, 3])]


def test_the_finest_steps_learn_from_data_and_larger_ones_from_the_average():
    network, average = ToAPoint(), ToAPoint()
    x, noise, label = torch.full((2, *SPEC.shape), 2.0), torch.randn(2, *SPEC.shape), torch.tensor([1, 1])
    t, level = torch.tensor([0.25, 0.0]), torch.tensor([3.0, 0.0])
    loss = Shortcut(8).losses_at(network, average, x, noise, t, level, label)["loss"]
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)  # the data is the point of its class
    assert network.calls == [([1, 1], [3, 0])]
    assert [labels for labels, _ in average.calls] == [[1], [1]]


def test_times_are_where_steps_of_the_drawn_size_begin():
    drawn = {}

    class Recorder(ToAPoint):
        def forward(self, x, t, label, level):
            drawn.setdefault("first", (t, level))
            return super().forward(x, t, label, level)

    count, process = 2000, Shortcut(16, bootstrap_share=0.5)
    tokens, label = torch.zeros(count, *SPEC.shape), torch.zeros(count, dtype=torch.int64)
    process.loss(Recorder(), tokens, label, spawn(0, range(count)), average=ToAPoint())
    t, level = drawn["first"]
    assert torch.equal(t * 2**level, (t * 2**level).round())
    assert t.min() == 0 and t.max() < 1
    shares = torch.bincount(level.long(), minlength=5) / count
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 2]), atol=0.03, rtol=0)


@pytest.mark.parametrize(("steps", "guidance", "level"), [(1, 1.0, 0), (4, 2.0, 2), (8, 2.0, 3)])
def test_samples_reach_the_point_of_their_class(steps, guidance, level):
    network, process = ToAPoint(), Shortcut(8, guidance=guidance)
    label = torch.tensor([0, 2])
    x = process.sample(network, label, SPEC, spawn(0, range(2)), MeanFlowSampling(steps=steps))
    assert {levels[0] for _, levels in network.calls} == {level}
    if level < 3:
        torch.testing.assert_close(x, as_rows(1.0 + label, x).expand_as(x))


@pytest.mark.parametrize("steps", [3, 16])
def test_steps_that_the_network_does_not_know_are_refused(steps):
    with pytest.raises(ConfigError, match=f"power of 2 up to 8 .* got {steps}"):
        Shortcut(8).sample(ToAPoint(), torch.tensor([0]), SPEC, spawn(0, [0]), MeanFlowSampling(steps=steps))


def test_configs_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match="power of 2: got 100; try 64"):
        ShortcutConfig(finest=100)
    with pytest.raises(ValueError, match="needs network interval_dit, got DiT"):
        ShortcutConfig().check(DiT((4, 4), 2, 2, 16, 1, 2))


def test_the_path_keeps_a_trace_of_noise():
    x, noise = torch.zeros(1, *SPEC.shape), torch.ones(1, *SPEC.shape)
    end, velocity = state(x, noise, torch.ones(1))
    torch.testing.assert_close(end, 1e-5 * noise, rtol=1e-2, atol=0)
    torch.testing.assert_close(velocity, (1e-5 - 1) * noise)
