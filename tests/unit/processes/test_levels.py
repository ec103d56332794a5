"""Noise levels: conversions are inverses, draws are each sample's own, and one process's states are another's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import ConfigError
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.flow import Flow
from genlab.processes.levels import levels_of, translate
from genlab.processes.next_x import NextXConfig
from genlab.processes.vp import VpDiffusion
from samplers.noise import spawn

PROCESSES = [
    *(Flow(path=path, prediction=kind) for path in ("linear", "gvp", "vp") for kind in ("velocity", "noise", "score")),
    *(Diffusion(schedule=name, prediction=kind) for name in ("linear", "cosine") for kind in ("noise", "velocity")),
    Diffusion(steps=10, schedule="scaled_linear", prediction="data"),
    VpDiffusion(),
    Edm(),
]


def states(process, low, high, seed=0, count=6):
    levels, rng = levels_of(process), spawn(seed, range(count))
    t = levels.draw(rng, low, high)
    data, noise = rng.normal(2, 4, 4), rng.normal(2, 4, 4)
    return levels, t, data, noise, levels.noised(data, noise, t)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), low=st.floats(0.2, 0.6))
def test_outputs_say_the_data_and_the_data_the_outputs(process, seed, low):
    levels, t, data, noise, x = states(process, low, low + 0.2, seed)
    assert torch.allclose(levels.data(levels.output(data, x, t), x, t), data, atol=1e-3)
    assert torch.allclose(levels.noise(data, x, t), noise, atol=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_network_that_knows_the_data_has_no_loss(process):
    levels, t, data, noise, x = states(process, 0.3, 0.7)
    label = torch.zeros(len(t), dtype=torch.long)
    right = levels.output(data, x, t)
    assert levels.loss(lambda *_: right, data, noise, t, label).max() < 1e-6
    assert levels.loss(lambda *_: right + 1, data, noise, t, label).min() > 1e-4


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_draws_are_each_samples_own_and_within_their_range(process):
    levels = levels_of(process)
    t = levels.draw(spawn(3, range(64)), 0.2, 0.8)
    assert torch.equal(t[5:7], levels.draw(spawn(3, [5, 6]), 0.2, 0.8))
    x = torch.zeros(64, 1, 1, 1)
    c, whole = levels.coefficients(t, x), levels.draw(spawn(4, range(4096)))
    ratio = (c.sigma / c.alpha).flatten()
    everything = levels.coefficients(whole, torch.zeros(4096, 1, 1, 1))
    ratios = (everything.sigma / everything.alpha).flatten()
    assert (ratios < ratio.min()).float().mean() == pytest.approx(0.2, abs=0.06)
    assert (ratios > ratio.max()).float().mean() == pytest.approx(
        0.2, abs=0.13 if "steps=10," in str(process) else 0.06
    )


@pytest.mark.parametrize("source", PROCESSES, ids=str)
@pytest.mark.parametrize(
    "target", [Flow(), Flow(path="gvp"), Flow(path="vp"), VpDiffusion(), Edm(), Diffusion()], ids=str
)
def test_states_are_moved_to_the_same_share_of_noise(source, target):
    levels, t, data, noise, x = states(source, 0.25, 0.75)
    other = levels_of(target)
    moved, times = translate(x, t, levels, other)
    near = 0.02 if isinstance(target, Diffusion) else 1e-3  # of whole steps the nearest
    scale = moved.abs().amax()
    assert torch.allclose(moved, other.noised(data, noise, times), atol=near * float(scale))


def test_generators_renoise_at_the_published_steps():
    assert levels_of(Diffusion()).spread(4) == (999, 749, 499, 249)
    assert levels_of(VpDiffusion()).spread(2) == (1000, 500)
    assert levels_of(Flow()).spread(4) == (0.0, 0.25, 0.5, 0.75)
    assert levels_of(Flow()).spread(4, shift=0.5)[1] < 0.25
    sigmas = levels_of(Edm()).spread(3)
    assert sigmas[0] == pytest.approx(80) and list(sigmas) == sorted(sigmas, reverse=True) and sigmas[-1] > 0.002


def test_other_processes_have_no_levels():
    with pytest.raises(ConfigError, match="flow, diffusion, vp or edm"):
        levels_of(NextXConfig().build())
