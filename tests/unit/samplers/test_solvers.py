"""Solvers against closed forms: Gaussian data N(m, s^2) on the linear path, whose velocity and score are known."""

import math

import pytest
import torch

from samplers import ode, sde
from samplers.grids import uniform

MEAN, STD = 1.5, 0.5


def variance(t):
    return t**2 * STD**2 + (1 - t) ** 2


def velocity(x, t):
    return MEAN + (t * STD**2 - (1 - t)) / variance(t) * (x - t * MEAN)


def score(x, t):
    return -(x - t * MEAN) / variance(t)


def transported(x):
    """Where the exact flow takes noise x: it keeps the standardised value."""
    return MEAN + STD * x


X = torch.linspace(-2, 2, 5, dtype=torch.float64)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence(method, order):
    """At least; some methods do better on this equation."""
    errors = [
        (ode.integrate(velocity, X, uniform(0, 1, steps), method) - transported(X)).abs().max() for steps in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_backwards_returns(method):
    there = ode.integrate(velocity, X, uniform(0, 1, 400), method)
    back = ode.integrate(velocity, there, uniform(1, 0, 400), method)
    torch.testing.assert_close(back, X, atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "bosh3"])
@pytest.mark.parametrize("backwards", [False, True])
def test_adaptive_steps_are_accurate_and_stay_on_the_interval(method, backwards):
    times = []

    def field(x, t):
        times.append(t)
        return velocity(x, t)

    ends = (1, 0) if backwards else (0, 1)
    start, expected = (transported(X), X) if backwards else (X, transported(X))
    got = ode.adaptive(field, start, uniform(*ends, 1), method, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert min(times) >= 0
    assert max(times) <= 1


def test_adaptive_steps_give_up_with_a_reason():
    with pytest.raises(ArithmeticError, match="dopri5 gave up"):
        ode.adaptive(lambda x, t: x * math.nan, X, uniform(0, 1, 1))


def test_steps_report_their_progress_and_stay_on_the_grid():
    seen = []
    ode.integrate(velocity, X, uniform(0, 1, 4), "heun", seen.append)
    assert [(p.step, p.steps, p.t) for p in seen] == [(1, 4, 0), (2, 4, 0.25), (3, 4, 0.5), (4, 4, 0.75)]
    assert torch.equal(seen[1].x, seen[0].result)
    assert torch.equal(seen[2].velocity, velocity(seen[2].x, 0.5))


@pytest.mark.parametrize("solver", [sde.euler_maruyama, sde.heun])
@pytest.mark.parametrize("strength", [lambda t: 1 - t, lambda t: 0.5, lambda t: math.sin(math.pi * t) ** 2])
def test_sde_reaches_the_moments_of_the_data(solver, strength):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator, dtype=torch.float64)

    def field(x, t):
        return velocity(x, t), score(x, t)

    def noise():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    x = solver(field, strength, x, uniform(0, 1, 100), noise)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, abs=0.02)


def test_sde_without_noise_is_the_ode():
    grid = uniform(0, 1, 10)
    pairs = ((sde.euler_maruyama, "euler"), (sde.heun, "heun"))
    for solver, method in pairs:
        got = solver(lambda x, t: (velocity(x, t), score(x, t)), lambda t: 0.0, X, grid, lambda: torch.randn(5))
        torch.testing.assert_close(got, ode.integrate(velocity, X, grid, method))


def test_last_steps():
    x, v, s, data = (torch.full((2,), value) for value in (1.0, 2.0, 3.0, 4.0))
    finish = {
        rule: sde.finish(rule, x, v, s, data, diffusion=0.5, size=0.1)[0].item()
        for rule in ("mean", "euler", "tweedie", "none")
    }
    assert finish == pytest.approx({"mean": 1 + 3.5 * 0.1, "euler": 1.2, "tweedie": 4.0, "none": 1.0})


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.001, 0.96), (1.0, 0.0)])
def test_grid_ends_are_exact_and_a_shift_keeps_them(start, end):
    for shift in (0.3, 1.0, 3.0):
        grid = uniform(start, end, 7, shift)
        assert grid[0].item() == start
        assert grid[-1].item() == pytest.approx(end, abs=1e-15)
        assert grid.shape == (8,)
        assert (grid.diff().sign() == math.copysign(1, end - start)).all()


def test_shift_is_the_published_formula():
    t, k = uniform(0, 1, 10), 0.3
    torch.testing.assert_close(uniform(0, 1, 10, k), k * t / (1 + (k - 1) * t))
    assert uniform(0, 1, 10, k)[1] < t[1]
