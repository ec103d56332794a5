"""Per-sample random streams: the numbers are good, and belong to (seed, index) alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from samplers.noise import SampleRng, spawn

SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.lists(st.integers(0, 2**40), min_size=2, max_size=9, unique=True), st.integers(1, 8))
def test_a_sample_does_not_depend_on_its_batch(seed, indices, cut):
    cut = min(cut, len(indices) - 1)
    together = spawn(seed, indices)
    first, second = spawn(seed, indices[:cut]), spawn(seed, indices[cut:])
    for draw in ("normal", "uniform"):
        whole = getattr(together, draw)(3, 5)
        assert torch.equal(whole, torch.cat([getattr(first, draw)(3, 5), getattr(second, draw)(3, 5)]))


@given(SEEDS)
def test_draws_streams_seeds_and_samples_differ(seed):
    rng = spawn(seed, [0, 1])
    first, second = rng.normal(64), rng.normal(64)
    fork, other_seed = spawn(seed, [0, 1]).fork(0).normal(64), spawn(seed + 1, [0, 1]).normal(64)
    rows = torch.cat([first, second, fork, other_seed])
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_forks_do_not_disturb_each_other():
    a, b = spawn(7, [3]), spawn(7, [3])
    b.fork(1).normal(100)
    assert torch.equal(a.normal(10), b.normal(10))


def test_rows_continue_the_streams():
    whole, parts = spawn(1, range(6)), spawn(1, range(6))
    whole.normal(4), parts.normal(4)
    assert torch.equal(whole.rows(slice(2, 5)).normal(4), parts.normal(4)[2:5])


def test_distributions():
    rng = spawn(0, range(1000))
    assert stats.kstest(rng.normal(200).flatten().numpy(), "norm").pvalue > 1e-3
    uniform = rng.uniform(200).flatten()
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = torch.bincount(rng.integers(10, 200).flatten(), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_neighbouring_samples_and_seeds_are_uncorrelated():
    rows = torch.cat([spawn(seed, range(8)).normal(20_000) for seed in range(3)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


def test_a_bound_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        spawn(0, [0]).integers(0)


def test_negative_and_huge_seeds_work():
    assert SampleRng(-1, torch.arange(2)).normal(3).isfinite().all()
    assert SampleRng(2**80 + 5, torch.arange(2)).normal(3).isfinite().all()
