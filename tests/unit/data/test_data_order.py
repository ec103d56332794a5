"""The order of images: exact, complete, resumable, the same for any number of processes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import DataError
from genlab.data.order import Order, micro_batches

_FROZEN = [1, 2, 0, 9, 8, 4, 7, 6, 3, 5, 2, 6, 3, 7, 8, 9, 0, 1, 5, 4]


@settings(deadline=None)
@given(seed=st.integers(-(2**70), 2**70), length=st.integers(1, 300), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(seed, length, epoch):
    indices = Order(seed, length).indices(range(epoch * length, (epoch + 1) * length))
    assert sorted(indices.tolist()) == list(range(length))


@settings(deadline=None)
@given(seed=st.integers(0, 9), length=st.integers(1, 50), start=st.integers(0, 200), data=st.data())
def test_a_position_gives_the_same_image_however_it_is_reached(seed, length, start, data):
    whole = Order(seed, length).indices(range(start + 100))
    shuffled = data.draw(st.permutations(range(start, start + 100)))
    assert Order(seed, length).indices(shuffled).tolist() == [whole[place] for place in shuffled]


def test_epochs_and_seeds_differ():
    first = Order(0, 1000).indices(range(2000))
    assert (first[:1000] != first[1000:]).mean() > 0.9
    assert (Order(1, 1000).indices(range(1000)) != first[:1000]).mean() > 0.9


def test_the_order_is_the_one_it_always_was():
    """Runs are resumed by later versions of genlab and numpy: these numbers must not change."""
    assert Order(7, 10).indices(range(20)).tolist() == _FROZEN


@settings(deadline=None)
@given(world=st.integers(1, 6), micros=st.integers(1, 4), micro=st.integers(1, 5), first=st.integers(0, 1000))
def test_the_ranks_together_see_the_global_batch(world, micros, micro, first):
    batch = world * micros * micro
    sizes = {"batch": batch, "micro_batch": micro, "world": world, "start": first * batch}
    ranks = [list(islice(micro_batches(**sizes, rank=rank), 2 * micros)) for rank in range(world)]
    for step in range(2):
        seen = [list(part) for rank in ranks for part in rank[step * micros : (step + 1) * micros]]
        begin = (first + step) * batch
        assert np.concatenate(seen).tolist() == list(range(begin, begin + batch))
        assert all(len(part) == micro for part in seen)


@settings(deadline=None)
@given(world=st.sampled_from([1, 2, 3]), done=st.integers(0, 20))
def test_resuming_continues(world, done):
    sizes = {"batch": 12, "micro_batch": 2, "world": world, "rank": world - 1}
    per_batch = 12 // world // 2
    straight = list(islice(micro_batches(**sizes, start=0), (done + 3) * per_batch))
    assert list(islice(micro_batches(**sizes, start=12 * done), 3 * per_batch)) == straight[done * per_batch :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 5}, "position 5 is inside a batch of 12"),
        ({"start": -12}, "position -12"),
        ({"micro_batch": 5}, "cut into micro-batches of 5 on 2 processes; choose a multiple of 10"),
        ({"batch": 0}, "a batch of 0"),
        ({"micro_batch": 0}, "micro-batches of 0"),
        ({"rank": 2}, "rank 2 is not one of 2"),
    ],
)
def test_sizes_that_do_not_fit_fail_at_once(change, message):
    sizes = {"batch": 12, "micro_batch": 3, "rank": 0, "world": 2, "start": 24}
    with pytest.raises(DataError, match=message):
        micro_batches(**(sizes | change))
