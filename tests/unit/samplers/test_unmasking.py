"""Parallel decoding: counts, orders and draws against what they are defined to be."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.noise import spawn
from samplers.unmasking import SCHEDULES, Proposal, counts, draw, gumbel, halton, share, table, unmask

names = st.sampled_from(sorted(SCHEDULES))


def test_counts_are_enats():
    assert counts(SCHEDULES["cosine"], 256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert counts(SCHEDULES["cosine"], 16, 64)[:3] == [15, 15, 15]
    assert counts(SCHEDULES["cosine"], 16, 6)[3] == 8  # 16 cos(pi/3), exactly


@given(name=names, length=st.integers(1, 300), steps=st.integers(1, 100), clamp=st.booleans())
@settings(max_examples=200, deadline=None)
def test_counts_fall_to_nothing(name, length, steps, clamp):
    if clamp and steps > length:
        with pytest.raises(ValueError, match=f"there are {length}"):
            counts(SCHEDULES[name], length, steps, clamp)
        return
    left = [length, *counts(SCHEDULES[name], length, steps, clamp)]
    revealed = [before - after for before, after in pairwise(left)]
    assert len(left) == steps + 1 and left[-1] == 0 and min(revealed) >= int(clamp)


@given(name=names, progress=st.floats(0, 1))
@settings(deadline=None)
def test_a_fine_table_is_its_schedule(name, progress):
    grid = torch.linspace(0, math.pi / 2, 4001, dtype=torch.float64).sin()  # dense where arccos is steep
    learned = table(list(zip(grid.tolist(), SCHEDULES[name](grid).clamp(0, 1).tolist())))
    at = torch.tensor([progress, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(learned(at), SCHEDULES[name](at), atol=1e-5, rtol=0)
    assert learned(at)[1:].tolist() == pytest.approx([1, 0], abs=1e-12)


@given(height=st.integers(1, 20), width=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_halton_visits_every_position_once(height, width):
    assert sorted(halton(height, width).tolist()) == list(range(height * width))


def test_halton_spreads_the_first_positions():
    early = (halton(16, 16).view(16, 16) < 64).float()
    blocks = early.view(4, 4, 4, 4).sum(dim=(1, 3))  # of 4 x 4 positions: 4 each, if spread evenly
    assert blocks.min() >= 3 and blocks.max() <= 5


def test_laws():
    assert [share("rising", step, 4) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [share("falling", step, 4) for step in range(4)] == [0.75, 0.5, 0.25, 0]
    assert share("constant", 2, 4) == 1


def drawn(logits, temperature, **filters):
    count = 20_000
    tokens, logp = draw(
        logits.expand(1, count, -1), temperature, lambda: gumbel(spawn(0, [0]), count, len(logits)), **filters
    )
    torch.testing.assert_close(logp, logits.log_softmax(-1)[tokens])
    return tokens[0].bincount(minlength=len(logits)) / count


def test_draws_follow_the_tempered_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        torch.testing.assert_close(drawn(logits, temperature), (logits / temperature).softmax(-1), atol=0.015, rtol=0)
    torch.testing.assert_close(drawn(logits, 3.0, top_k=2)[[0, 3]], torch.zeros(2))
    assert drawn(logits, 3.0, top_p=0.5)[2] == 1
    assert drawn(logits, 0)[2] == 1


def test_temperature_zero_draws_no_noise():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens, _ = draw(logits, 0, lambda: pytest.fail("noise was drawn"))
    assert torch.equal(tokens, logits.argmax(-1))


@given(
    given_=st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda keep: not all(keep)), steps=st.integers(1, 6)
)
@settings(max_examples=60, deadline=None)
def test_the_surest_are_revealed_and_stay(given_, steps):
    keep, length, rows, mask = torch.tensor(given_), len(given_), 3, 99
    tokens = torch.arange(length).expand(rows, -1).masked_fill(~keep, mask)
    score = torch.rand(rows, length, generator=torch.Generator().manual_seed(length))
    seen = []

    def propose(step, now, masked, fresh):
        assert torch.equal(masked, masked.sort(dim=1).values) and torch.equal(fresh, fresh.sort(dim=1).values)
        assert masked.shape[1]
        assert (now.gather(1, masked) == mask).all() and (now != mask).sum() == now.numel() - masked.numel()
        seen.append(fresh)
        return Proposal(masked + 100 * step, score.gather(1, masked))

    masked, fresh = (at.nonzero().T.expand(rows, -1) for at in (~keep, keep))
    left = counts(SCHEDULES["cosine"], masked.shape[1], steps)
    states = list(unmask(propose, tokens, masked, fresh, left, mask))
    final = states[-1].tokens
    assert torch.equal(final, states[-1].guess) and (final != mask).all()
    assert torch.equal(final[:, keep], tokens[:, keep])
    assert torch.equal(final % 100, torch.arange(length).expand(rows, -1))
    for row in range(rows):  # a surer position is revealed in no later step
        step_of = (final[row] // 100)[~keep]
        order = score[row, ~keep].argsort(descending=True)
        assert (step_of[order].diff() >= 0).all()
        revealed = torch.cat([part[row] for part in seen]).tolist()
        assert len(revealed) == len(set(revealed))  # each position is new only once
