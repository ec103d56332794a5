"""Masks of residual codes by exact enumeration, and the search that reveals them against the literal one."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.noise import SampleRng, spawn
from samplers.residual_fill import (
    draw_masked,
    marginal,
    masked_cells,
    plan,
    posterior,
    quantise,
    reveal,
    share,
    transition,
    visible,
)

SCHEDULES = ["circle", "cosine", "arccos", "linear"]
sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))


def states(positions, depth, n):
    """All states with n masked, [N,L]."""
    found = [k for k in product(range(depth + 1), repeat=positions) if sum(k) == n]
    return torch.tensor(found).view(-1, positions)


def chi_square(counts, expected):
    """By how many standard deviations Pearson's statistic exceeds its mean."""
    used = expected > 0
    assert counts[~used].sum() == 0
    statistic = ((counts - expected)[used].square() / expected[used]).sum()
    freedom = int(used.sum()) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def frequencies(drawn, listed):
    """How often each of the listed states [N,L] was drawn [M,L]."""
    return (drawn[:, None] == listed).all(-1).sum(0).double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shares_fall_from_all_to_none(schedule):
    values = share(schedule, torch.linspace(0, 1, 100))
    assert values[0] == 1 and values[-1] == pytest.approx(0, abs=1e-12)
    assert (values.diff() < 0).all()


@settings(deadline=None)
@given(schedule=st.sampled_from(SCHEDULES), cells=st.integers(1, 300), data=st.data())
def test_every_step_reveals_something_and_stays_below_the_schedule(schedule, cells, data):
    steps = data.draw(st.integers(1, cells))
    left = plan(schedule, cells, steps)
    assert len(left) == steps + 1 and left[0] == cells and left[-1] == 0
    assert all(after < before for before, after in pairwise(left))
    literal = plan(schedule, cells, steps, literal=True)
    wanted = masked_cells(schedule, torch.arange(1, steps, dtype=torch.float64) / steps, cells).tolist()
    assert literal[1:-1] == wanted
    assert all(ours <= theirs for ours, theirs in zip(left, literal))


def test_cosine_with_many_steps_is_the_case_that_the_literal_schedule_stalls_in():
    assert plan("cosine", 1024, 63, literal=True)[1] == 1024
    assert plan("cosine", 1024, 63)[1] == 1023
    with pytest.raises(ValueError, match="9 steps for 8 cells"):
        plan("cosine", 8, 9)


@settings(max_examples=25, deadline=None)
@given(size=sizes, data=st.data())
def test_forward_process_is_consistent(size, data):
    positions, depth = size
    n = data.draw(st.integers(0, positions * depth))
    more = data.draw(st.integers(n, positions * depth))
    before, after = states(*size, n), states(*size, more)
    q_before, q_after = marginal(before, depth), marginal(after, depth)
    forward = transition(before[:, None], after, depth)  # [N,M]
    torch.testing.assert_close(q_before.sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(forward.sum(1), torch.ones(len(before)).double())
    torch.testing.assert_close(q_before @ forward, q_after)
    torch.testing.assert_close(posterior(before, after[:, None]), (q_before[:, None] * forward / q_after).T)


def test_masks_are_drawn_without_replacement():
    draws, listed = 20_000, states(3, 2, 3)
    noise = SampleRng(0, torch.arange(draws)).uniform(3, 2)
    masked = draw_masked(noise, torch.full((draws,), 3))
    assert abs(chi_square(frequencies(masked, listed), marginal(listed, 2) * draws)) < 4


def test_masks_of_different_sizes_in_a_batch():
    noise = SampleRng(1, torch.arange(25)).uniform(4, 6)
    assert torch.equal(draw_masked(noise, torch.arange(25)).sum(1), torch.arange(25))


@settings(deadline=None)
@given(batch=st.integers(1, 3), size=sizes, temperature=st.sampled_from([0.0, 1.0, 1e6]), seed=st.integers(0, 1000))
def test_reveals_as_many_as_wanted_and_only_what_is_masked(batch, size, temperature, seed):
    rng = spawn(seed, range(batch))
    cells = size[0] * size[1]
    n = 1 + seed % cells
    masked = draw_masked(rng.uniform(*size), torch.full((batch,), n))
    count = reveal(rng.normal(size[0], 1), masked, rng.normal(*size), 1 + seed % n, temperature)
    assert (count.sum(1) == 1 + seed % n).all()
    assert ((count >= 0) & (count <= masked)).all()


@pytest.mark.parametrize("confidence", [0.0, 1.0], ids=["equal confidence", "infinitely hot"])
def test_unsure_choices_follow_the_posterior(confidence):
    draws, after = 20_000, torch.tensor([3, 1, 2])
    rng = SampleRng(2, torch.arange(draws))
    gumbel = -(-rng.uniform(3, 3).clamp_min(1e-9).log()).log()
    masked = after.expand(draws, 3)
    count = reveal(confidence * rng.normal(3, 1), masked, gumbel, 4, 1e6 if confidence else 1.0)
    listed = states(3, 3, 2)
    assert abs(chi_square(frequencies(masked - count, listed), posterior(listed, after) * draws)) < 4


def test_sure_positions_come_first_when_cold():
    count = reveal(torch.tensor([[[0.0], [2.0], [1.0]]]), torch.tensor([[2, 2, 2]]), torch.zeros(1, 3, 2), 3, 0.0)
    assert count.tolist() == [[0, 2, 1]]


class Books:
    """Code vectors [D,V,C] whose searches are counted."""

    def __init__(self, tables):
        self.tables, self.searches = tables, 0

    def __call__(self, depth, vectors):
        self.searches += len(vectors)
        codes = torch.cdist(vectors, self.tables[depth]).argmin(1)
        return codes, self.tables[depth][codes]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 12))
def test_searching_what_is_revealed_gives_the_same_as_searching_all(seed, steps):
    rng = spawn(seed, [0, 1])
    depth, positions, channels = 3, 4, 2
    books = Books(rng.normal(depth, 5, channels)[0])
    codes = torch.zeros(2, positions, depth, dtype=torch.int64)
    literal, masked = codes.clone(), torch.full((2, positions), depth)
    left = plan("circle", depth * positions, steps)
    total = torch.zeros(2, positions, channels)
    for before, after in pairwise(left):
        latent = rng.normal(positions, channels)
        count = reveal(rng.normal(positions, 1), masked, rng.normal(positions, depth), before - after, 1.0)
        codes, added = quantise(latent, codes, depth - masked, count, books, before - after)
        everything, _ = quantise(latent, literal, depth - masked, masked, Books(books.tables), positions)
        seen = visible(masked - count, depth) & ~visible(masked, depth)
        literal = torch.where(seen, everything, literal)
        masked, total = masked - count, total + added
    assert torch.equal(codes, literal)
    assert books.searches == codes.numel()
    vectors = torch.stack([books.tables[d][codes[..., d]] for d in range(depth)]).sum(0)
    torch.testing.assert_close(total, vectors)
