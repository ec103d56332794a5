"""Sampling that begins from an image: with as much noise as it is told, and with what is kept kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.processes.diffusion import Diffusion, DiffusionConfig
from genlab.processes.edm import Edm, EdmConfig
from genlab.processes.flow import Flow, FlowConfig
from genlab.processes.paths import PATHS, coefficients, time_at
from genlab.processes.start import Start
from genlab.processes.vp import VpDiffusion, VpDiffusionConfig
from samplers.grids import later, uniform
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
LABEL = torch.tensor([0, 1, 2])


class Ideal(Network):
    """The best prediction for standard normal data, or for EDM of its own deviation; moved a little by the class."""

    num_classes = 3

    def __init__(self, process):
        super().__init__()
        self.process, self.first = process, None

    def forward(self, x, t, label):
        self.first = x if self.first is None else self.first
        nudge = 0.05 * label.view(-1, 1, 1, 1).to(x.dtype)
        match self.process:
            case Edm():
                return nudge.expand_as(x)
            case Flow(path=path):
                c = coefficients(path, t, x)
                share = (c.alpha * c.d_alpha + c.sigma * c.d_sigma) / (c.alpha**2 + c.sigma**2)
                return share * x + nudge
            case Diffusion() | VpDiffusion():
                return self.process.coefficients(t.long() if isinstance(self.process, Diffusion) else t, x).sigma * x


CASES = [
    (FlowConfig(), {"sampler": "heun", "steps": 12}),
    (FlowConfig(path="gvp"), {"sampler": "unipc", "steps": 12}),
    (FlowConfig(path="vp"), {"sampler": "euler", "steps": 40}),
    (FlowConfig(), {"sampler": "dopri5"}),
    (FlowConfig(), {"sampler": "euler_maruyama", "steps": 40}),
    (FlowConfig(), {"sampler": "sde_heun", "steps": 20}),
    (DiffusionConfig(), {"sampler": "ddim", "steps": 25}),
    (DiffusionConfig(), {"sampler": "ddpm", "steps": 100}),
    (DiffusionConfig(), {"sampler": "unipc", "steps": 12}),
    (VpDiffusionConfig(), {"sampler": "dpm_singlestep", "steps": 15}),
    (VpDiffusionConfig(), {"sampler": "dpm_multistep", "steps": 20, "order": 2, "denoise": True}),
    (VpDiffusionConfig(), {"sampler": "unipc", "steps": 12, "order": 2}),
    (EdmConfig(), {"steps": 12}),
    (EdmConfig(), {"steps": 12, "churn": 10.0}),
]
NAMES = [f"{config.name}-{settings.get('sampler', 'heun')}-{index}" for index, (config, settings) in enumerate(CASES)]
every = pytest.mark.parametrize(("config", "settings"), CASES, ids=NAMES)


def sample(config, settings, start=None, index=range(3), on_step=None, network=None):
    process = config.build()
    rows = list(index)
    options = {} if start is None else {"start": start}
    made = config.Sampling(**settings)
    return process.sample(network or Ideal(process), LABEL[rows], SPEC, spawn(7, rows), made, on_step, **options)


@pytest.fixture
def tokens():
    return torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)


@pytest.fixture
def keep():
    return torch.arange(4).expand(4, 4) < 2  # the left half


@every
def test_full_strength_is_sampling(config, settings, tokens):
    assert torch.equal(sample(config, settings, Start(tokens)), sample(config, settings))


@every
def test_more_strength_leads_further_away(config, settings, tokens):
    tokens = tokens * (0.5 if config.name == "edm" else 1)
    far = [
        (sample(config, settings, Start(tokens, strength)) - tokens).abs().mean().item()
        for strength in (0.1, 0.5, 0.95)
    ]
    assert far[0] < 0.25 < far[2] and far == sorted(far)


@every
def test_what_is_kept_stays_and_the_rest_is_each_seeds_own(config, settings, tokens, keep):
    seen = []
    together = sample(config, settings, Start(tokens, 1.0, keep), on_step=seen.append)
    assert torch.equal(together[:, :, keep], tokens[:, :, keep])
    assert (together - tokens)[:, :, ~keep].abs().mean() > 0.1 and together.isfinite().all()
    assert [event.step for event in seen] == sorted({event.step for event in seen}) and seen[-1].step == seen[-1].steps
    if settings.get("sampler") != "dopri5":  # which shows states
        torch.testing.assert_close(seen[0].tokens[:, :, keep], tokens[:, :, keep], rtol=0, atol=1e-4)
    alone = sample(config, settings, Start(tokens[:1], 1.0, keep), index=[1])
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-5)


@every
def test_any_strength_gives_finite_samples_in_fewer_steps(config, settings, tokens, keep):
    for strength in (0.031, 0.3, 0.999):
        seen = []
        made = sample(config, settings, Start(tokens, strength, keep), on_step=seen.append)
        assert made.isfinite().all() and seen[-1].step == seen[-1].steps
        if settings.get("sampler") != "dopri5":
            assert seen[-1].steps <= settings["steps"] + (strength > 0.99)


@pytest.mark.parametrize("config", [FlowConfig(), DiffusionConfig(), VpDiffusionConfig()], ids=lambda made: made.name)
def test_strength_is_the_share_of_noise_in_the_first_state(config):
    network = Ideal(config.build())
    sample(config, {"steps": 50}, Start(torch.full((3, 2, 4, 4), 1000.0), 0.4), network=network)
    alpha = (network.first.mean() / 1000).item()
    sigma = 1 - alpha if config.name == "flow" else math.sqrt(1 - alpha**2)
    assert sigma / (alpha + sigma) == pytest.approx(0.4, abs=0.02)


def test_less_noise_than_the_sampler_ends_with_is_refused(tokens):
    for config, settings in [(VpDiffusionConfig(), {"end": 0.3}), (FlowConfig(sample_eps=0.1), {})]:
        with pytest.raises(ConfigError, match=r"strength 0\.05 is less"):
            sample(config, settings, Start(tokens, 0.05))


@pytest.mark.parametrize("path", PATHS)
@given(strength=st.floats(0.01, 0.99))
def test_the_time_of_a_share_of_noise(path, strength):
    start = Start(torch.zeros(1), strength)
    c = PATHS[path](torch.tensor(time_at(path, start.log_snr), dtype=torch.float64))
    assert (c.sigma / (c.alpha + c.sigma)).item() == pytest.approx(strength, abs=1e-6)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 0.999), st.integers(1, 30))
def test_what_is_left_of_a_grid(first, last, way, steps):
    if abs(first - last) < 1e-3:
        return
    grid, begin = uniform(first, last, steps), first + way * (last - first)
    rest = later(grid, begin).tolist()
    assert rest[0] == begin and rest[1:] == [point for point in grid.tolist() if (point - begin) * (last - first) > 0]
    assert len(rest) >= 2
