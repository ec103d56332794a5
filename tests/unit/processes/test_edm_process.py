import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, NonFinite
from genlab.processes.edm import Edm, EdmConfig
from genlab.processes.edm_sampling import EdmSampling
from samplers.grids import karras
from samplers.noise import spawn

SPEC = LatentSpec("continuous", 2, (4, 4), 4)
LABEL = torch.tensor([0, 1, 2])


class Gaussian(Network):
    """The exact network for data N(mean of the class, scale^2), with a count of its rows."""

    num_classes = 3

    def __init__(self, scale: float = 0.5, shift: float = 0.0, classes: int = 3):
        super().__init__()
        self.scale, self.shift, self.num_classes, self.rows = scale, shift, classes, 0

    def forward(self, x, t, label, log_variance=False):
        self.rows += len(x)
        process, wide = Edm(), (slice(None), None, None, None)
        sigma = (4 * t).exp()
        c = process.scalings(sigma)
        mean = self.shift * torch.where(label == self.num_classes, 0, 1 + label)[wide]
        noisy = x / c.into[wide]
        gain = (self.scale**2 / (self.scale**2 + sigma.square()))[wide]
        expected = mean + gain * (noisy - mean)
        out = (expected - c.skip[wide] * noisy) / c.out[wide]
        return (out, t) if log_variance else out


def test_inputs_and_targets_have_unit_variance():
    process, rng = Edm(), spawn(0, range(4000))
    sigma = torch.tensor([0.01, 0.5, 20.0])
    for level, *c in zip(sigma, *process.scalings(sigma)):
        data, noise = 0.5 * rng.normal(4), rng.normal(4)
        skip, out, into, _ = c
        noisy = data + level * noise
        assert (into * noisy).std() == pytest.approx(1, rel=0.03)
        assert ((data - skip * noisy) / out).std() == pytest.approx(1, rel=0.03)
        assert process.weight(level) * out**2 == pytest.approx(1, rel=1e-5)


def test_the_loss_is_the_error_of_the_bare_network():
    class Silent(Network):
        num_classes = 3

        def forward(self, x, t, label):
            return torch.zeros_like(x)

    rng = spawn(0, range(512))
    data = 0.5 * rng.normal(2, 4, 4)
    losses = Edm().loss(Silent(), data, torch.zeros(512, dtype=torch.int64), rng)
    assert losses["loss"].shape == (512,)
    assert losses["loss"].mean() == pytest.approx(1, rel=0.03)


def test_uncertainty_is_learnt_as_the_logarithm_of_the_error():
    rng = spawn(0, range(3))
    process = Edm(uncertainty=True)
    losses = process.loss(Gaussian(), rng.normal(2, 4, 4), LABEL, rng)
    expected = losses["mse"] / losses["log_variance"].exp() + losses["log_variance"]
    torch.testing.assert_close(losses["loss"], expected)
    errors, u = process.errors_at(Gaussian(), torch.ones(3, 2, 4, 4), torch.zeros(3, 2, 4, 4), torch.ones(3), LABEL)
    assert errors.shape == (3, 2, 4, 4)
    assert u.shape == (3,)


def test_samples_end_where_the_exact_flow_ends():
    settings = EdmSampling(steps=64)
    samples = Edm().sample(Gaussian(scale=0.3), LABEL, SPEC, spawn(0, range(3)), settings)
    noise = spawn(0, range(3)).normal(2, 4, 4)
    torch.testing.assert_close(samples, noise * 80 * 0.3 / math.hypot(80, 0.3), rtol=5e-3, atol=1e-4)


def test_churn_keeps_the_distribution_and_samples_do_not_know_each_other():
    settings = EdmSampling(steps=80, churn=8, churn_noise=1.0)
    label = torch.zeros(300, dtype=torch.int64)
    samples = Edm().sample(Gaussian(scale=0.3), label, SPEC, spawn(0, range(300)), settings)
    assert samples.std() == pytest.approx(0.3, rel=0.03)
    alone = Edm().sample(Gaussian(scale=0.3), label[7:8], SPEC, spawn(0, [7]), settings)
    torch.testing.assert_close(alone[0], samples[7])
    plain = Edm().sample(Gaussian(scale=0.3), label[7:8], SPEC, spawn(0, [7]), EdmSampling(steps=80))
    assert (alone - plain).abs().max() > 0.01


def test_guidance_costs_only_where_it_acts_and_pushes_away_from_no_class():
    network = Gaussian(scale=0.1, shift=1.0)
    settings = EdmSampling(steps=8, guidance=2.0)
    samples = Edm().sample(network, LABEL, SPEC, spawn(0, range(3)), settings)
    torch.testing.assert_close(samples.mean((1, 2, 3)), 2 * (1.0 + LABEL), rtol=0.05, atol=0.05)
    assert network.rows == 6 * 15
    levels = karras(80, 0.002, 8).tolist()
    network.rows = 0
    interval = (levels[4], levels[2])  # steps 2, 3 and 4
    Edm().sample(network, LABEL, SPEC, spawn(0, range(3)), settings.model_copy(update={"guidance_interval": interval}))
    assert network.rows == 3 * 15 + 3 * 6


@pytest.mark.parametrize("classes", [3, 0])
def test_a_weaker_network_can_guide(classes):
    strong, weak = Gaussian(scale=0.1, shift=1.0), Gaussian(scale=0.1, shift=0.5, classes=classes)
    settings = EdmSampling(steps=8, guidance=3.0)
    samples = Edm().sample(strong, LABEL, SPEC, spawn(0, range(3)), settings, weaker=weak)
    away = 0.5 * (1.0 + LABEL) if classes else torch.zeros(3)
    wanted = away + 3 * (1.0 + LABEL - away)
    torch.testing.assert_close(samples.mean((1, 2, 3)), wanted, rtol=0.05, atol=0.05)
    assert strong.rows == weak.rows == 3 * 15


def test_steps_are_reported_and_a_broken_sample_is_named():
    events = []
    Edm().sample(Gaussian(), LABEL, SPEC, spawn(0, range(3)), EdmSampling(steps=5), events.append)
    assert [(event.step, event.steps) for event in events] == [(step, 5) for step in range(1, 6)]

    class Broken(Gaussian):
        def forward(self, x, t, label):
            out = super().forward(x, t, label)
            out[1] = math.nan
            return out

    with pytest.raises(NonFinite, match=r"step 1 of 5, in samples \[1\]"):
        Edm().sample(Broken(), LABEL, SPEC, spawn(0, range(3)), EdmSampling(steps=5))


@given(st.floats(1, 1e3), st.floats(1e-4, 0.5), st.integers(2, 60), st.floats(1, 12))
def test_noise_levels_fall_to_zero(highest, lowest, steps, rho):
    levels = karras(highest, lowest, steps, rho)
    assert len(levels) == steps + 1
    assert levels[0].item() == pytest.approx(highest)
    assert levels[-2].item() == pytest.approx(lowest, rel=1e-6)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_settings_say_what_is_wrong_and_what_has_no_effect():
    with pytest.raises(ValidationError, match="sigma_min must be below"):
        EdmSampling(sigma_min=90)
    with pytest.raises(ValidationError, match="must go up"):
        EdmSampling(guidance_interval=(2, 1))
    assert EdmSampling().idle() == {"churn_interval", "churn_noise", "guidance_interval"}
    assert EdmSampling(churn=40, guidance=2).idle() == set()
    with pytest.raises(ConfigError, match="edm2"):
        EdmConfig(uncertainty=True).check(torch.nn.Linear(1, 1))
    EdmConfig(uncertainty=True).check(Gaussian())
