"""UniPC against Gaussian data, whose probability flow is known, and against DPM-Solver++."""

import math

import pytest
import torch
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.paths import coefficients
from genlab.processes.unipc import unipc
from genlab.processes.vp import VpDiffusion
from genlab.processes.vp_sampling import VpSampling
from samplers import dpm_solver
from samplers.noise import spawn
from samplers.vp_schedule import Level

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
LABEL = torch.tensor([0, 1, 2])
MEANS, STD = torch.tensor([-1.0, 0.0, 2.0, 0.5]), 0.5
X = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)


def spread(alpha, sigma):
    return math.hypot(alpha * STD, sigma)


def data_in(x, alpha, sigma, mean=1.5):
    """E[data | x] of N(mean, STD^2)."""
    return mean + alpha * STD**2 / spread(alpha, sigma) ** 2 * (x - alpha * mean)


def straight(steps, start=0.05, end=0.95):
    return [(t, 1 - t) for t in torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()]


def round_path(steps):
    return [(math.sin(0.5 * math.pi * a), math.cos(0.5 * math.pi * a)) for a, _ in straight(steps)]


def error(levels, order):
    (a, s), (b, r) = levels[0], levels[-1]
    exact = b * 1.5 + (X - a * 1.5) / spread(a, s) * spread(b, r)
    return (unipc(lambda x, k: data_in(x, *levels[k]), X, levels, order) - exact).abs().max().item()


@pytest.mark.parametrize("path", [straight, round_path])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_adds_an_order(path, order):
    assert math.log2(error(path(80), order) / error(path(160), order)) > order + 0.5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_pure_noise_and_clean_data_are_levels_like_others(order):
    assert error(straight(40, 0.0, 1.0), order) < 1e-2


class Gaussian(Network):
    """The exact prediction for class means plus N(0, STD^2), as its process wants it; counts its calls."""

    num_classes = 3

    def __init__(self, process):
        super().__init__()
        self.process, self.calls = process, 0

    def forward(self, x, t, label):
        self.calls += 1
        mean = MEANS[label].view(-1, 1, 1, 1)
        if isinstance(self.process, Flow):
            c = coefficients("linear", t, x)
            data = mean + c.alpha * STD**2 / (c.alpha**2 * STD**2 + c.sigma**2) * (x - c.alpha * mean)
            return (data - x) / c.sigma if c.sigma.min() > 0 else data
        c = self.process.coefficients(t.long() if isinstance(self.process, Diffusion) else t, x)
        return c.sigma * (x - c.alpha * mean) / (c.alpha**2 * STD**2 + c.sigma**2)


SYSTEMS = [
    (Diffusion(), DiffusionSampling(sampler="unipc", steps=40), DiffusionSampling(sampler="ddim", steps=1000)),
    (
        VpDiffusion(),
        VpSampling(sampler="unipc", steps=12, order=2, spacing="log_snr"),
        VpSampling(sampler="dpm_multistep", steps=200, order=2),
    ),
    (Flow(), FlowSampling(sampler="unipc", steps=12), FlowSampling(sampler="rk4", steps=50)),
]


@pytest.mark.parametrize(("process", "settings", "fine"), SYSTEMS, ids=["diffusion", "vp", "flow"])
def test_it_finds_what_a_fine_solution_finds_with_one_call_a_step(process, settings, fine):
    network, seen = Gaussian(process), []
    got = process.sample(network, LABEL, SPEC, spawn(0, range(3)), settings, seen.append)
    assert network.calls == settings.steps and [event.step for event in seen] == list(range(1, settings.steps + 1))
    assert torch.equal(seen[-1].tokens, got)
    torch.testing.assert_close(got, process.sample(network, LABEL, SPEC, spawn(0, range(3)), fine), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("process", "settings", "_"), SYSTEMS, ids=["diffusion", "vp", "flow"])
def test_a_sample_depends_on_nothing_but_its_own_seed(process, settings, _):
    settings = settings.model_copy(update={"guidance": 1.5, "order": 3})
    whole = process.sample(Gaussian(process), LABEL, SPEC, spawn(7, range(3)), settings)
    alone = process.sample(Gaussian(process), LABEL[1:2], SPEC, spawn(7, [1]), settings)
    torch.testing.assert_close(whole[1:2], alone)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_diffusion_agrees_with_what_diffusers_does_alone(order):
    from diffusers import UniPCMultistepScheduler

    process = Diffusion()
    theirs = UniPCMultistepScheduler(solver_order=order, beta_end=0.02, timestep_spacing="trailing")
    theirs.set_timesteps(20)
    x, network = spawn(0, range(3)).normal(*SPEC.shape), Gaussian(process)
    for t in theirs.timesteps:
        x = theirs.step(network(x, t.float().expand(3), LABEL), t, x).prev_sample
    settings = DiffusionSampling(sampler="unipc", steps=20, order=order)
    got = process.sample(network, LABEL, SPEC, spawn(0, range(3)), settings)
    torch.testing.assert_close(got, x, atol=1e-4, rtol=0)


def test_the_first_order_without_corrections_is_dpm_solver():
    """The last step is never corrected, so that one step alone is DPM-Solver++'s first."""
    levels = [Level(0.0, alpha, sigma, math.log(alpha / sigma)) for alpha, sigma in round_path(1)]
    expected = dpm_solver.multistep(lambda x, level: data_in(x, level.alpha, level.sigma), X, levels, 1)
    got = unipc(lambda x, k: data_in(x, levels[k].alpha, levels[k].sigma), X, [level[1:3] for level in levels], 1)
    torch.testing.assert_close(got, expected)


def test_corrections_gain_on_dpm_solver():
    steps = 80
    levels = [Level(0.0, alpha, sigma, math.log(alpha / sigma)) for alpha, sigma in round_path(steps)]
    (a, s), (b, r) = levels[0][1:3], levels[-1][1:3]
    exact = b * 1.5 + (X - a * 1.5) / spread(a, s) * spread(b, r)
    other = dpm_solver.multistep(lambda x, level: data_in(x, level.alpha, level.sigma), X, levels, 2)
    assert error(round_path(steps), 2) < 0.5 * (other - exact).abs().max()


def test_settings_that_it_has_not_are_refused():
    with pytest.raises(ValidationError, match="unipc solves for data"):
        VpSampling(sampler="unipc", solve_for="noise")
    with pytest.raises(ValidationError, match="eta belongs to ddim"):
        DiffusionSampling(sampler="unipc", eta=0.5)
