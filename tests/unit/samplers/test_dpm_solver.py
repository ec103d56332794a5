"""DPM-Solvers against Gaussian data, whose probability flow is known, and against diffusers."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

from samplers import dpm_solver
from samplers.vp_schedule import Cosine, Linear, Tabulated, grid, half_log_snr, levels, refine, time_of

MEAN, STD = 1.5, 0.5
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
DISCRETE = Tabulated(torch.cumprod(1 - BETAS, 0))
SCHEDULES = {"discrete": DISCRETE, "linear": Linear(), "cosine": Cosine()}
X = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
SINGLE = [(order, form, rule) for order in (1, 2, 3) for form in ("data", "noise") for rule in ("midpoint", "taylor")]


def spread(level):
    return math.hypot(level.alpha * STD, level.sigma)


def data_in(x, level):
    """E[data | x] of N(MEAN, STD^2)."""
    return MEAN + level.alpha * STD**2 / spread(level) ** 2 * (x - level.alpha * MEAN)


def model(form):
    if form == "data":
        return data_in
    return lambda x, level: (x - level.alpha * data_in(x, level)) / level.sigma


def exact(x, nodes):
    """The flow keeps the standardised value."""
    start, end = nodes[0], nodes[-1]
    return end.alpha * MEAN + (x - start.alpha * MEAN) / spread(start) * spread(end)


def nodes_of(steps, end=0.05, spacing="log_snr"):
    return levels(Linear(), grid(Linear(), 1.0, end, steps, spacing))


def single(nodes, order, form, rule="midpoint"):
    groups = [order] * ((len(nodes) - 1) // order)
    return dpm_solver.singlestep(model(form), X, nodes, groups, form, rule)


@pytest.mark.parametrize(("order", "form", "rule"), SINGLE)
def test_order_of_convergence_singlestep(order, form, rule):
    errors = [(single(n, order, form, rule) - exact(X, n)).abs().max() for n in (nodes_of(48), nodes_of(96))]
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence_multistep(order, form):
    errors = [
        (dpm_solver.multistep(model(form), X, n, order, form) - exact(X, n)).abs().max()
        for n in (nodes_of(60), nodes_of(120))
    ]
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_adaptive_steps_are_accurate(order, form):
    got = dpm_solver.adaptive(model(form), X, Linear(), 1.0, 0.05, order, form, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, exact(X, nodes_of(1)), atol=1e-3, rtol=0)


def test_adaptive_steps_give_up_with_a_reason():
    with pytest.raises(ArithmeticError, match="not finite"):
        dpm_solver.adaptive(lambda x, level: x * math.nan, X, Linear(), 1.0, 0.05)


@pytest.mark.parametrize(
    ("steps", "order", "sizes"),
    [(1, 3, [1]), (3, 3, [2, 1]), (9, 3, [3, 3, 2, 1]), (10, 3, [3, 3, 3, 1]), (8, 3, [3, 3, 2]), (7, 2, [2, 2, 2, 1])],
)
def test_groups_spend_exactly_the_steps(steps, order, sizes):
    assert dpm_solver.group_sizes(steps, order) == sizes
    calls = []
    nodes = nodes_of(steps)
    dpm_solver.singlestep(lambda x, level: calls.append(level) or x, X, nodes, sizes)
    assert calls == nodes[:-1]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rule", ["midpoint", "taylor"])
@pytest.mark.parametrize("steps", [9, 20])
def test_multistep_agrees_with_diffusers(order, rule, steps):
    from diffusers import DPMSolverMultistepScheduler

    nodes = levels(DISCRETE, grid(DISCRETE, 1.0, 1e-3, steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DPMSolverMultistepScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            solver_order=order,
            solver_type="midpoint" if rule == "midpoint" else "heun",
            final_sigmas_type="sigma_min",
        )
    theirs.set_timesteps(steps)
    theirs.sigmas = torch.tensor([node.sigma / node.alpha for node in nodes], dtype=torch.float64)  # not rounded
    theirs.timesteps = torch.arange(steps)
    theirs.set_begin_index(0)
    x = X
    for k, node in enumerate(nodes[:-1]):
        x = theirs.step(model("noise")(x, node), theirs.timesteps[k], x).prev_sample
    got = dpm_solver.multistep(data_in, X, nodes, order, "data", rule)
    torch.testing.assert_close(got, x, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", ["singlestep", "multistep"])
def test_samples_do_not_see_each_other_and_steps_are_reported(solver):
    nodes, seen = nodes_of(10), []

    def run(x, on_step=None):
        if solver == "multistep":
            return dpm_solver.multistep(data_in, x, nodes, 3, on_step=on_step)
        return dpm_solver.singlestep(data_in, x, nodes, [3, 3, 3, 1], on_step=on_step)

    whole = run(X, seen.append)
    assert torch.equal(whole[2:3], run(X[2:3]))
    assert seen[-1].step == seen[-1].steps == 10
    assert all(torch.equal(later.x, earlier.result) for earlier, later in pairwise(seen))
    assert torch.equal(seen[1].prediction, data_in(seen[1].x, seen[1].start))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_are_variance_preserving_and_invertible(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(0.001, 0.99, 50, dtype=torch.float64)
    rows = levels(schedule, t)
    assert all(row.alpha**2 + row.sigma**2 == pytest.approx(1) for row in rows)
    assert all(math.log(row.alpha / row.sigma) == pytest.approx(row.log_snr, abs=1e-9) for row in rows)
    torch.testing.assert_close(time_of(schedule, half_log_snr(schedule.log_alpha(t))), t, atol=1e-9, rtol=0)


def test_a_table_is_met_at_its_steps():
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - BETAS, 0)
    torch.testing.assert_close((2 * DISCRETE.log_alpha(t)).exp(), alpha_bar[[0, 499, 999]])


@pytest.mark.parametrize("spacing", ["time", "time_quadratic", "log_snr", "karras"])
def test_grids_fall_between_their_ends_evenly_in_their_own_measure(spacing):
    times = grid(DISCRETE, 1.0, 1e-3, 12, spacing)
    assert (times[0].item(), times[-1].item()) == pytest.approx((1.0, 1e-3))
    assert (times.diff() < 0).all()
    log_snr = half_log_snr(DISCRETE.log_alpha(times))
    measure = {"time": times, "time_quadratic": times.sqrt(), "log_snr": log_snr, "karras": (-log_snr / 7).exp()}
    gaps = measure[spacing].diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps))


def test_refined_grids_cut_each_interval_evenly_in_lambda():
    times = grid(DISCRETE, 1.0, 1e-3, 4)
    fine = refine(DISCRETE, times, 3)
    torch.testing.assert_close(fine[::3], times)
    gaps = half_log_snr(DISCRETE.log_alpha(fine)).diff().view(4, 3)
    torch.testing.assert_close(gaps, gaps.mean(1, keepdim=True).expand(4, 3))


def test_thresholds_are_each_samples_own():
    x = torch.stack([torch.linspace(-0.5, 0.5, 101), torch.linspace(-4, 4, 101)])
    got = dpm_solver.threshold(x, quantile=0.5)
    assert torch.equal(got[0], x[0])
    torch.testing.assert_close(got[1], (x[1] / 2).clamp(-1, 1))
