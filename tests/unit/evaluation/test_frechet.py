"""Frechet distances and the streamed moments behind them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import DataError
from genlab.evaluation.frechet import (
    Gaussian,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    intra_class_frechet,
    sfid_features,
)
from genlab.evaluation.moments import Moments

seeds = st.integers(0, 2**31)
counts = st.integers(2, 40)


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


@given(seed=seeds, n=counts, m=counts, d=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_symmetric_and_zero_on_the_same_set(seed, n, m, d):
    x, y = normal(n, d, seed), normal(m, d, seed + 1, 1.0)
    assert frechet_from_features(x, y) == pytest.approx(frechet_from_features(y, x), rel=1e-10, abs=1e-12)
    zero = frechet_from_features(x, x.clone())
    assert 0 <= zero < 1e-12 * x.square().sum() and math.copysign(1, zero) == 1


def test_closed_form():
    # diagonal covariances commute: |mu|^2 + sum (sqrt a - sqrt b)^2
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 0.0, 1.0])
    x, y = Gaussian.from_statistics(torch.zeros(3), a.diag()), Gaussian.from_statistics(torch.ones(3), b.diag())
    assert frechet_distance(x, y) == pytest.approx(3 + 1 + 4 + 4, abs=1e-12)


@given(seed=seeds, d=st.integers(1, 10), cuts=st.lists(st.integers(0, 50), max_size=5))
@settings(max_examples=30, deadline=None)
def test_streamed_moments_equal_one_batch(seed, d, cuts):
    x = normal(50, d, seed, 1e3)
    bounds = [0, *sorted(cuts), 50]
    whole, streamed, merged = Moments.of(x), Moments(d), Moments(d)
    for start, stop in itertools.pairwise(bounds):
        streamed.update(x[start:stop])
        part = Moments(d)
        part.update(x[start:stop])
        merged.merge(part)
    resumed = Moments.from_state(streamed.state_dict())
    for other in (streamed, merged, resumed):
        assert other.count == 50
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.covariance(), torch.cov(x.mT).reshape(d, d), rtol=1e-9, atol=1e-10)


def test_statistics_and_features_agree():
    x, y = normal(200, 20, 0), normal(300, 20, 1, 0.3)
    streamed = frechet_distance(*(Gaussian.from_moments(Moments.of(part)) for part in (x, y)))
    assert streamed == pytest.approx(frechet_from_features(x, y), rel=1e-11)
    again = Moments.from_statistics(x.mean(0), torch.cov(x.mT), 200)
    torch.testing.assert_close(again.m2, Moments.of(x).m2)


def test_singular_statistics_fall_back_to_eigenvectors():
    x, y = normal(8, 20, 0), normal(9, 20, 1)
    streamed = frechet_distance(*(Gaussian.from_moments(Moments.of(part)) for part in (x, y)))
    assert streamed == pytest.approx(frechet_from_features(x, y), rel=1e-7)
    nothing = Gaussian.from_statistics(torch.zeros(3), torch.zeros(3, 3))
    assert frechet_distance(nothing, nothing) == 0


def _reduce(rank: int, world: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/sync", rank=rank, world_size=world)
    x = normal(31, 5, 3, 100.0)
    moments = Moments(5)
    moments.update(x[[0, 0, 1, 31][rank] : [0, 1, 31][rank]])  # none, one, the rest
    moments.all_reduce()
    torch.save(moments.state_dict(), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_agree_with_one(tmp_path):
    mp.spawn(_reduce, (3, str(tmp_path)), nprocs=3)
    whole = Moments.of(normal(31, 5, 3, 100.0))
    for rank in range(3):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert state["count"] == 31
        torch.testing.assert_close(state["mean"], whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(state["m2"], whole.m2, rtol=1e-12, atol=1e-11)


def test_infinity_removes_the_bias_of_few_samples():
    x, y = normal(2000, 10, 0), normal(1000, 10, 1)
    limit, sizes, values = frechet_infinity(x, y, points=8, least=100)
    assert sizes[0] == 100 and sizes[-1] == 1000 and len(values) == 8
    assert abs(limit) < values[-1] < values[0]


def test_intra_class_is_the_distance_of_each_class():
    x, y = normal(40, 3, 0), normal(40, 3, 1)
    label = torch.arange(40) % 2
    scores = intra_class_frechet(x, label, y, label)
    assert scores[1] == frechet_from_features(x[1::2], y[1::2])
    with pytest.raises(DataError, match="class 1 has 20 reference and 0"):
        intra_class_frechet(x, label, y, torch.where(label == 1, 7, 0))


def test_sfid_features_are_channels_last():
    maps = torch.arange(2 * 9 * 17 * 17.0).view(2, 9, 17, 17)
    features = sfid_features(maps)
    assert features.shape == (2, 2023)
    assert features[1, (3 * 17 + 5) * 7 + 2] == maps[1, 2, 3, 5]
    with pytest.raises(DataError, match="7 channels"):
        sfid_features(maps[:, :6])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.tensor([[1.0], [float("nan")], [float("inf")]]), torch.ones(3, 1), "rows 1, 2"),
        (torch.ones(1, 2), torch.ones(3, 2), "at least 2"),
        (torch.ones(3, 2), torch.ones(3, 4), "2 columns"),
        (torch.ones(3), torch.ones(3, 4), "matrix"),
        (torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4), "floating"),
    ],
)
def test_refusals(x, y, message):
    with pytest.raises(DataError, match=message):
        frechet_from_features(x, y)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(2), torch.eye(3), "mu"),
        (torch.zeros(2), torch.full((2, 2), float("nan")), "NaN"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "eigenvalue"),
    ],
)
def test_statistics_that_are_none_are_refused(mean, covariance, message):
    with pytest.raises(DataError, match=message):
        Gaussian.from_statistics(mean, covariance)


def test_one_row_has_no_covariance():
    with pytest.raises(DataError, match="at least 2 images"):
        Moments.of(torch.ones(1, 3)).covariance()
