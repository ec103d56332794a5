import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.processes.paths import PATHS, coefficients, diffusion, interpolate
from genlab.processes.predict import to_data, to_noise, to_score, to_velocity

NAMES = sorted(PATHS)
FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")
TO = {"data": to_data, "noise": to_noise, "velocity": to_velocity, "score": to_score}
times = st.floats(0.02, 0.98)


@pytest.mark.parametrize("path", NAMES)
def test_paths_run_from_noise_to_data(path):
    start, end = PATHS[path](torch.tensor(0.0)), PATHS[path](torch.tensor(1.0))
    assert end.alpha.item() == pytest.approx(1)
    assert end.sigma.item() == 0
    assert start.sigma.item() == pytest.approx(1, abs=1e-4)
    assert start.alpha.item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("path", NAMES)
def test_derivatives_are_the_derivatives(path):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    c = PATHS[path](t)
    (d_alpha,) = torch.autograd.grad(c.alpha.sum(), t, retain_graph=True)
    (d_sigma,) = torch.autograd.grad(c.sigma.sum(), t)
    torch.testing.assert_close(c.d_alpha, d_alpha)
    torch.testing.assert_close(c.d_sigma, d_sigma)


@settings(deadline=None, max_examples=60)
@given(path=st.sampled_from(NAMES), t=times, source=st.sampled_from(sorted(TO)), target=st.sampled_from(sorted(TO)))
def test_predictions_survive_the_round_trip(path, t, source, target):
    generator = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    c = coefficients(path, t, x1)
    x = interpolate(c, x1, x0)
    truth = {"data": x1, "noise": x0, "velocity": c.d_alpha * x1 + c.d_sigma * x0, "score": -x0 / c.sigma}
    torch.testing.assert_close(TO[target](source, truth[source], x, c), truth[target], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", NAMES)
def test_velocity_to_data_and_noise_is_finite_at_the_start(path):
    x, v = torch.randn(2, 3)
    c = coefficients(path, 0.0, x)
    assert to_data("velocity", v, x, c).isfinite().all()
    assert to_score("velocity", v, x, c).isfinite().all()


@pytest.mark.parametrize("path", NAMES)
def test_velocity_is_drift_plus_gain_times_score(path):
    x, score = torch.randn(2, 3, dtype=torch.float64)
    c = coefficients(path, 0.4, x)
    expected = c.d_alpha / c.alpha * x + c.score_gain * score
    torch.testing.assert_close(to_velocity("score", score, x, c), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", NAMES)
def test_diffusion_is_positive_and_defined_inside(path, form):
    t = torch.linspace(0.01, 0.99, 30)
    d = diffusion(form, t, PATHS[path](t), norm=0.7)
    assert d.shape == t.shape
    assert (d >= 0).all()
    assert d.isfinite().all()


def test_diffusion_forms_by_hand():
    t = torch.tensor(0.25)
    c = PATHS["linear"](t)
    values = [diffusion(form, t, c, norm=2.0).item() for form in FORMS]
    cosine = (2 * math.cos(math.pi / 4) + 1) ** 2 / 4
    assert values == pytest.approx([2, 2 * 0.75 / 0.25, 1.5, 1.5, cosine, 2 * 0.5], rel=1e-6)


def test_times_per_sample_broadcast_over_the_state():
    x = torch.randn(3, 2, 4, 4)
    c = coefficients("gvp", torch.tensor([0.1, 0.5, 0.9]), x)
    assert c.alpha.shape == (3, 1, 1, 1)
    one = coefficients("gvp", 0.5, x)
    torch.testing.assert_close((one.alpha * x)[1], (c.alpha * x)[1])
    assert (one.alpha * x).dtype == torch.float32
