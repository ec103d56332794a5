import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import NonFinite
from genlab.processes.consistency import AveragedConsistency, Consistency, ConsistencyConfig
from genlab.processes.consistency_pairs import (
    ConsistencyTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    Pair,
)
from genlab.processes.consistency_sampling import ConsistencySampling
from genlab.processes.continuous_consistency import ContinuousConsistency
from samplers.noise import spawn

SPEC = LatentSpec("continuous", 2, (4, 4), 4)
LABEL = torch.tensor([0, 1, 2, 0])
CURRICULA = [ConsistencyTraining(steps=1000), ImprovedConsistencyTraining(steps=1000), EasyConsistencyTuning()]


class Exact(Network):
    """The consistency function of data N(0, scale^2): each state goes to scale / sqrt(scale^2 + sigma^2) of itself."""

    num_classes = 3

    def __init__(self, process, scale):
        super().__init__()
        self.process, self.scale, self.calls = process, scale, 0

    def forward(self, x, t, label):
        self.calls += 1
        sigma = (t / self.process.time_factor).exp()[:, None, None, None]
        c = self.process.scalings(sigma)
        state = x / c.into
        return (self.scale / (self.scale**2 + sigma**2).sqrt() * state - c.skip * state) / c.out


class Learner(Network):
    """Something with weights and dropout."""

    num_classes = 3

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv, self.dropout = nn.Conv2d(2, 2, 3, padding=1), dropout

    def forward(self, x, t, label):
        return self.conv(F.dropout(x, self.dropout, self.training)) * (1 + t[:, None, None, None])


def test_at_the_boundary_the_prediction_is_the_state():
    process, x = Consistency(boundary=0.002), spawn(0, range(4)).normal(2, 4, 4)
    torch.testing.assert_close(process.denoise(Learner(), x, torch.full((4,), 0.002), LABEL)[0], x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("curriculum", CURRICULA, ids=lambda c: c.name)
@given(step=st.integers(0, 10_000_000), seed=st.integers(0, 1000))
def test_pairs_are_two_levels_with_a_weight_at_any_update(curriculum, step, seed):
    pair = curriculum.pair(spawn(seed, range(64)), step, 0.5)
    assert (pair.low >= 0).all()
    assert (pair.high > pair.low).all()
    assert (pair.weight > 0).all()
    assert pair.weight.isfinite().all()
    alone = curriculum.pair(spawn(seed, [5]), step, 0.5)
    assert torch.equal(torch.stack(alone)[:, 0], torch.stack(pair)[:, 5])


@pytest.mark.parametrize("curriculum", CURRICULA, ids=lambda c: c.name)
def test_pairs_come_closer_as_training_goes_on(curriculum):
    gaps = []
    for step in (0, 300, 999):
        pair = curriculum.pair(spawn(0, range(512)), step * (100 if curriculum.name == "ect" else 1), 0.5)
        gaps.append((pair.low / pair.high).mean())
    assert gaps[0] < gaps[1] < gaps[2]


def test_improved_training_draws_intervals_as_often_as_it_says():
    curriculum = ImprovedConsistencyTraining()
    grid = curriculum.grid(0)
    low = curriculum.pair(spawn(0, range(20_000)), 0, 0.5).low
    drawn = torch.stack([(low - level).abs() < 1e-6 * level for level in grid[:-1]]).float().mean(1)
    torch.testing.assert_close(drawn.double(), curriculum.probabilities(grid), rtol=0, atol=0.012)


def test_the_target_has_no_gradient_and_is_the_data_at_level_zero():
    process, data = Consistency(curriculum=EasyConsistencyTuning(), boundary=0.0), spawn(0, range(4)).normal(2, 4, 4)
    ours, theirs = Learner(), Learner()
    pair = Pair(torch.full((4,), 2.0), torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.ones(4))
    noise = spawn(1, range(4)).normal(2, 4, 4)
    losses = process.losses_between(ours, theirs, data, noise, pair, LABEL)
    losses["loss"].sum().backward()
    assert ours.conv.weight.grad is not None
    assert theirs.conv.weight.grad is None
    expected = process.denoise(ours, data + 2 * noise, pair.high, LABEL)[0]
    torch.testing.assert_close(losses["loss"][:2], (expected - data)[:2].flatten(1).norm(dim=1))
    assert not torch.allclose(losses["loss"][2:], (expected - data)[2:].flatten(1).norm(dim=1))


def test_both_calls_drop_the_same_units_and_draw_from_the_generator_once():
    process, network = Consistency(boundary=0.0), Learner(dropout=0.5)
    data, noise = spawn(0, range(4)).normal(2, 4, 4), spawn(1, range(4)).normal(2, 4, 4)
    same = Pair(torch.ones(4), torch.ones(4), torch.ones(4))
    torch.manual_seed(0)
    first = process.losses_between(network, network, data, noise, same, LABEL)["loss"]
    after = torch.rand(1)
    assert first.abs().max() < 1e-6
    torch.manual_seed(0)
    process.denoise(network, data + noise, torch.ones(4), LABEL)
    assert torch.equal(after, torch.rand(1))


def test_only_training_by_ct_asks_for_the_moving_average():
    by_name = {name: ConsistencyConfig(curriculum={"name": name}).build() for name in ("ct", "ict", "ect")}
    assert isinstance(by_name["ct"], AveragedConsistency)
    assert [process.takes_average for process in by_name.values()] == [True, False, False]
    ours, average, rng = Learner(), Learner(), spawn(0, range(4))
    by_name["ct"].at(7).loss(ours, rng.normal(2, 4, 4), LABEL, rng, average=average)["loss"].sum().backward()
    assert average.conv.weight.grad is None
    assert by_name["ct"].at(7).step == 7


@pytest.mark.parametrize("levels", [(80.0,), (80.0, 0.8), (80.0, 5.0, 0.3)])
def test_the_exact_function_gives_the_data_in_any_number_of_steps(levels):
    process, rng = Consistency(boundary=0.0), spawn(0, range(2000))
    network = Exact(process, 0.7)
    label = torch.zeros(2000, dtype=torch.int64)
    x = process.sample(network, label, SPEC, rng, ConsistencySampling(levels=levels, sigma_min=0.0))
    assert network.calls == len(levels)
    assert x.std() == pytest.approx(0.7, rel=0.02)
    assert x.mean().abs() < 0.02


def test_a_sample_is_the_same_in_any_batch_and_steps_are_told():
    process, network, events = Consistency(), Learner(), []
    settings = ConsistencySampling(levels=(80.0, 0.8), clip=True)
    whole = process.sample(network, LABEL, SPEC, spawn(3, range(4)), settings, events.append)
    part = process.sample(network, LABEL[2:3], SPEC, spawn(3, [2]), settings)
    torch.testing.assert_close(part[0], whole[2], rtol=0, atol=1e-6)
    assert [(event.step, event.steps) for event in events] == [(1, 2), (2, 2)]
    assert whole.abs().max() <= 1


def test_a_broken_network_is_named():
    class Broken(Network):
        num_classes = 3

        def forward(self, x, t, label):
            return x * math.nan

    with pytest.raises(NonFinite, match="step 1 of 1"):
        Consistency().sample(Broken(), LABEL, SPEC, spawn(0, range(4)), ConsistencySampling())


@pytest.mark.parametrize("levels", [(), (1.0, 2.0), (80.0, 0.001)])
def test_levels_that_do_not_fall_are_refused(levels):
    with pytest.raises(ValidationError, match="levels"):
        ConsistencySampling(levels=levels)


class Still(Network):
    """For data of EDM's own deviation the flow in TrigFlow stands still: F = 0, or with `map` the function itself."""

    num_classes = 3

    def __init__(self, map=False):
        super().__init__()
        self.map, self.gain = map, nn.Parameter(torch.ones([]))

    def forward(self, x, t, label):
        angle = ((4 * t).exp() / 0.5).atan()[:, None, None, None]
        return self.gain * x * (angle / 2).tan() if self.map else 0 * x


@pytest.mark.parametrize("step", [0, 10_000])
def test_in_continuous_time_the_exact_function_has_nothing_to_learn(step):
    process = ContinuousConsistency().at(step)
    data, noise = 0.5 * spawn(0, range(4)).normal(2, 4, 4), spawn(1, range(4)).normal(2, 4, 4)
    sigma = torch.tensor([0.05, 0.5, 2.0, 30.0])
    state = process.state(data, noise, sigma, process.guided_velocity(Still(), LABEL, 1.0))
    losses = process.losses_of(Still(map=True), state, sigma, LABEL)
    assert (losses["error"].max() < 1e-8) == (step > 0)  # without the derivative it has


def test_continuous_time_learns_from_data_alone_and_per_sample():
    process, network = ContinuousConsistency().at(5000), Learner()
    tokens = spawn(0, range(4)).normal(2, 4, 4)
    losses = process.loss(network, tokens, LABEL, spawn(1, range(4)))
    losses["loss"].sum().backward()
    assert network.conv.weight.grad.abs().max() > 0
    one = process.loss(network, tokens[1:2], LABEL[1:2], spawn(1, [1]))
    torch.testing.assert_close(one["loss"][0], losses["loss"][1], rtol=1e-4, atol=1e-6)
