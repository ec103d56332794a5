"""Micro-batches: the same whatever the number of workers and processes, and after a resume."""

from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import islice

import pytest
import torch

from genlab.core.errors import DataError
from genlab.data.digits import Digits
from genlab.data.folder import Folder
from genlab.data.loader import batches
from genlab.data.photos import Photos


def _take(source, count, **options):
    return list(islice(batches(source, **({"seed": 3, "batch": 8, "micro_batch": 4} | options)), count))


def _assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert torch.equal(one.position, other.position)
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.images, other.images)


@pytest.fixture
def folder(class_folders, photo_bytes):
    (class_folders / "c/2.png").write_bytes(photo_bytes)
    (class_folders / "c/3.png").write_bytes(photo_bytes[:-2000])
    return Folder(path=class_folders, size=8, crop="random", flip=True, max_unreadable=0.1)


def test_batches_are_as_promised():
    first, second = _take(Digits().build(), 2)
    assert first.images.shape == (4, 3, 8, 8) and first.images.dtype == torch.uint8
    assert first.label.dtype == first.position.dtype == torch.int64
    assert first.position.tolist() == [0, 1, 2, 3] and second.position.tolist() == [4, 5, 6, 7]


def test_workers_change_nothing(folder):
    _assert_same(_take(folder.build(), 12), _take(folder.build(), 12, workers=2))


def test_ranks_and_micro_batches_change_nothing(folder):
    whole = _take(folder.build(), 6, micro_batch=8)
    shares = [_take(folder.build(), 12, micro_batch=2, world=2, rank=rank) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [part for share in shares for part in share[2 * step : 2 * step + 2]]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.label for part in parts]), batch.label)


def test_a_resume_continues_exactly(folder):
    straight = _take(folder.build(), 10)
    _assert_same(straight[6:], _take(folder.build(), 4, start=24))


def test_unlabelled_data_has_label_zero(tmp_path, save):
    save(tmp_path / "1.png")
    [batch] = _take(Folder(path=tmp_path, size=8).build(), 1)
    assert batch.label.tolist() == [0, 0, 0, 0]


def test_a_seed_chooses_the_order():
    source = Photos(size=8).build()
    assert not torch.equal(_take(source, 1)[0].label, _take(source, 1, seed=4)[0].label)


def test_wrong_sizes_fail_before_the_first_batch():
    with pytest.raises(DataError, match="position 4 is inside"):
        batches(Digits().build(), seed=0, batch=8, micro_batch=8, start=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_without_a_traceback_in_the_message(class_folders, workers):
    for number in range(8):
        (class_folders / f"b owl/{number}.png").write_bytes(b"")
    source = Folder(path=class_folders, size=8, max_unreadable=0.3).build()
    # Two workers run ahead of each other, so one of them may have found another file by then.
    with pytest.raises(DataError, match=r"[6-8] of 18") as failure:
        _take(source, 20, workers=workers)
    assert len(str(failure.value).splitlines()) <= 2


def test_what_workers_find_is_known_to_the_parent(folder):
    source = folder.build()
    _take(source, 8, workers=2)
    assert [name.rsplit("/", 1)[1] for name in source.unreadable()] == ["3.png"]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    _take(Digits().build(), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_outlive_signals_to_the_group(folder):
    stream = batches(folder.build(), seed=3, batch=8, micro_batch=4, workers=2)
    assert len(list(islice(stream, 4))) == 4  # workers take turns: now both have started
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    assert len(children) == 2
    assert len(list(islice(stream, 40))) == 40
