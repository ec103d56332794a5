"""Scores made of pairs of features: neighbours, kernels, slices, Vendi."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import DataError
from genlab.evaluation import neighbours, pairs
from genlab.evaluation.half_precision import half_precision_recall
from genlab.evaluation.joint import pair_scores
from genlab.evaluation.kernel import GaussianKernel, Polynomial, cmmd, kid, mmd2
from genlab.evaluation.neighbours import authenticity, manifold_scores, realism, squared_radii
from genlab.evaluation.pairs import clouds
from genlab.evaluation.slices import mind, sliced_wasserstein
from genlab.evaluation.vendi import vendi_per_class, vendi_score


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def naive(x: torch.Tensor, y: torch.Tensor, k: int, strict: bool) -> tuple[float, float, float, float]:
    xx, yy, xy = ((a[:, None] - b).square().sum(-1).numpy() for a, b in ((x, x), (y, y), (x, y)))
    rx, ry = np.sort(xx, 1)[:, k], np.sort(yy, 1)[:, k]
    compare = np.less if strict else np.less_equal
    in_x, in_y = compare(xy, rx[:, None]), compare(xy, ry)
    return in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum() / (k * len(y)), in_x.any(1).mean()


@given(
    n=st.integers(8, 60), m=st.integers(8, 60), k=st.integers(1, 6), d=st.integers(1, 6), seed=st.integers(0, 9999),
    grid=st.booleans(), strict=st.booleans(), fast=st.booleans(), single=st.booleans(),
    scale=st.sampled_from([1e-20, 1.0, 1e15]), offset=st.sampled_from([0.0, 1000.0]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_counts_are_exact_ties_and_offsets_included(n, m, k, d, seed, grid, strict, fast, single, scale, offset):
    x, y = 2 * normal(n, d, seed), 2 * normal(m, d, seed + 1)
    if grid:
        x, y = x.round(), y.round()
    x, y = ((part + offset) * scale for part in (x, y))
    if single:
        x, y = x.float(), y.float()
    scores = manifold_scores(x, y, k, strict, fast)
    expected = naive(x.double(), y.double(), k, strict)
    assert (scores.precision, scores.recall, scores.density, scores.coverage) == pytest.approx(expected, abs=1e-12)


def test_the_features_given_are_left_alone():
    x, y = normal(60, 8, 0), normal(50, 8, 1)
    before = x.clone(), y.clone()
    pair_scores(x, y, subsets=60, size=20)
    authenticity(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_many_tiles_give_the_counts_of_one(monkeypatch):
    monkeypatch.setattr(pairs.blocks, "__defaults__", (16,))
    monkeypatch.setattr(pairs.visit_upper, "__defaults__", (False, 16))
    monkeypatch.setattr(pairs.visit_pairs, "__defaults__", (False, 16))
    monkeypatch.setattr(neighbours, "_WAITING", 50)
    x, y = normal(133, 5, 0), normal(97, 5, 1)
    scores = manifold_scores(x, y, 4)
    expected = naive(x, y, 4, False)
    assert (scores.precision, scores.recall, scores.density, scores.coverage) == pytest.approx(expected, abs=1e-12)


def test_identical_and_collapsed_sets():
    x = normal(300, 16, 0).float()
    for fast in (False, True):
        same = manifold_scores(x, x.clone(), 3, strict=True, fast=fast)
        assert (same.precision, same.recall, same.density, same.coverage) == (1, 1, 1, 1)
    point = torch.ones(50, 4)
    assert manifold_scores(point, point, 3).precision == 1
    assert manifold_scores(point, point, 3, strict=True).precision == 0  # nothing is closer than 0
    assert manifold_scores(x[:, :4], point + 100, 3).precision == 0


def test_many_duplicates_do_not_hide_the_true_radius():
    x = torch.cat([torch.zeros(40, 3), torch.ones(40, 3), normal(5, 3, 0).float() * 9])
    expected = (x[:, None].double() - x.double()).square().sum(-1).sort(dim=1).values[:, 3]
    torch.testing.assert_close(squared_radii(clouds(x, x)[0], 3), expected, rtol=1e-12, atol=0)


def test_half_precision_equals_exact_where_numbers_are_small():
    x, y = normal(60, 3, 0).round(), normal(50, 3, 1).round()
    exact = manifold_scores(x, y, 3)
    assert half_precision_recall(x, y) == (exact.precision, exact.recall)
    huge = half_precision_recall(1e4 * x, 1e4 * y)  # overflows float16: float32 takes over
    assert huge == (exact.precision, exact.recall)


@pytest.mark.parametrize("fast", [False, True])
def test_one_sweep_gives_the_separate_scores(fast):
    x, y = normal(260, 64, 0, 0.2).float(), normal(240, 64, 1).float()
    joint = pair_scores(x, y, subsets=20, size=80, fast=fast)
    alone = kid(y.double(), x.double(), 20, 80)
    assert joint.kid.mean == pytest.approx(alone.mean, rel=1e-3 if fast else 1e-5)
    assert joint.kid.std == pytest.approx(alone.std, rel=1e-2 if fast else 1e-4)
    assert joint.manifold == manifold_scores(x, y)
    few = pair_scores(x, y, subsets=2, size=20, fast=fast)
    assert few.kid == kid(y, x, 2, 20)


@pytest.mark.parametrize("kernel", [Polynomial(), Polynomial(2, 0.1, 0.5), GaussianKernel(2.0)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_mmd_does_not_depend_on_tiles_and_is_what_it_says(kernel, estimator):
    x, y = normal(23, 4, 0), normal(31, 4, 1, 0.5)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    if estimator == "biased":
        expected = xx.mean() + yy.mean() - 2 * xy.mean()
    else:
        off = (xx.sum() - xx.trace()) / (23 * 22) + (yy.sum() - yy.trace()) / (31 * 30)
        expected = off - 2 * xy.mean()
    for tile in (5, 100):
        assert mmd2(x, y, kernel, estimator, tile) == pytest.approx(expected.item(), rel=1e-10)


def test_cmmd_of_the_same_set_is_zero_not_negative():
    x = torch.nn.functional.normalize(normal(50, 8, 0))
    zero = cmmd(x, x.clone())
    assert 0 <= zero < 1e-10 and math.copysign(1, zero) == 1


def test_slices_of_shifted_sets():
    x = normal(400, 6, 0)
    assert mind(x, x.clone()) == 0
    assert mind(x, x + 0.5) == pytest.approx(3 * 6 * 0.25, rel=0.1)  # E (u.s)^2 = |s|^2 / d
    assert sliced_wasserstein(x, x + 0.5) == pytest.approx(0.5, rel=1e-9)
    assert mind(x, x[:100] + 2) == pytest.approx(mind(x[:100] + 2, x), rel=0.2)


def test_vendi_counts_what_differs():
    rows = torch.eye(5).repeat(4, 1)
    assert [vendi_score(rows, q) for q in (1, 2, math.inf)] == pytest.approx([5, 5, 5])
    assert vendi_score(torch.ones(7, 3)) == pytest.approx(1)
    assert vendi_per_class(rows, torch.arange(20) // 10)[1] == pytest.approx(5)
    with pytest.raises(DataError, match="row 1"):
        vendi_score(torch.tensor([[1.0], [0.0]]))


def test_copies_are_not_authentic_and_unrealistic_points_score_low():
    x = normal(60, 3, 0)
    assert authenticity(x, x + 1e-9) == 0
    assert authenticity(x, x + 100) == 100
    near, far = realism(x, x[:5] + 0.01), realism(x, x[:5] + 100)
    assert near.min() > far.max() > 0
    with pytest.raises(DataError, match="median"):
        realism(torch.ones(9, 2), normal(9, 2, 1).float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: manifold_scores(x, x[:4], 3), "at least 5"),
        (lambda x: manifold_scores(x, x, 0), "k = 0"),
        (lambda x: manifold_scores(x, x[:, :2]), "columns"),
        (lambda x: kid(x, x), "from 2 to 20"),
        (lambda x: mmd2(x, x[:9], Polynomial(), "u-statistic"), "one size"),
        (lambda x: cmmd(x * math.nan, x), "NaN"),
        (lambda x: mind(x, x[:0]), "at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call(normal(20, 3, 0))
