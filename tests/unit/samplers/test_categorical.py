import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samplers.categorical import choose, exponential, filtered, greedy, soft_choice
from samplers.noise import spawn

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.0, 0.0])


def naive(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> list[int]:
    """The alternatives that are left, by the definition."""
    order = logits.argsort(descending=True).tolist()[: top_k or len(logits)]
    share, left, total = logits[order].softmax(0).tolist(), [], 0.0
    for place, alternative in enumerate(order):
        if top_p is None or total < top_p:
            left.append(alternative)
        total += share[place]
    return sorted(left)


@given(st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 10_000))
def test_filters_keep_the_likeliest(top_k, top_p, seed):
    logits = spawn(seed, [0]).normal(9)[0]
    for k, p in ((top_k, None), (None, top_p), (top_k, top_p)):
        left = filtered(logits, k, p).isfinite().nonzero().flatten().tolist()
        assert left == naive(logits, k, p)


def test_equals_of_the_last_stay():
    assert filtered(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2).isfinite().tolist() == [True, True, True, False]


def test_draws_are_distributed_as_softmax():
    noise = exponential(spawn(0, range(40_000)), 5)
    drawn = torch.bincount(choose(LOGITS.expand(40_000, 5), noise), minlength=5) / 40_000
    torch.testing.assert_close(drawn, LOGITS.softmax(0), atol=0.01, rtol=0)


def test_noise_is_positive_and_each_samples_own():
    noise = exponential(spawn(0, [3, 4]), 100_000)
    assert noise.min() > 0
    assert noise.mean() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(exponential(spawn(0, [4]), 100_000)[0], noise[1])


def test_cold_mixtures_are_draws_and_filtered_ones_have_no_share():
    noise = exponential(spawn(0, range(50)), 5)
    logits = filtered(LOGITS.expand(50, 5), top_k=3)
    shares = soft_choice(logits, noise, 1e-3)
    torch.testing.assert_close(shares.sum(-1), torch.ones(50))
    assert torch.equal(shares.argmax(-1), choose(logits, noise))
    assert not shares[:, [2, 4]].any()
    assert greedy(LOGITS) == 1


@pytest.mark.parametrize("top_k", [0, 6])
def test_impossible_numbers_are_refused(top_k):
    with pytest.raises(ValueError, match=r"1\.\.5"):
        filtered(LOGITS, top_k=top_k)
