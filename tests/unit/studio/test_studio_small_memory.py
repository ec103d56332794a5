"""Out of memory: half as many at a time, and the visitor is told."""

import pytest
import torch
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.pretrained import from_pretrained
from genlab.studio import markup
from genlab.studio.catalog import Catalog
from genlab.studio.orders import Limits, place
from genlab.studio.work import generating


class Watching:
    """A running job that remembers its news."""

    def __init__(self):
        self.frames = []

    def check(self):
        pass

    def show(self, done, words="", **content):
        self.frames.append({"done": done, "left": None, "words": words, **content})


def on_accelerator():
    raise torch.OutOfMemoryError


def on_processor():
    torch.empty(2**55, dtype=torch.uint8)  # the allocator's own words


def in_numpy():
    raise MemoryError


@pytest.fixture
def entry(tmp_path):
    (entry,) = Catalog([write_run(tmp_path / "tiny")]).refresh().entries.values()
    return entry


def fail_above(monkeypatch, generator, most, fail):
    """Let batches of more than `most` images fail."""
    sample = type(generator).sample

    def tight(self, label, *more):
        if len(label) > most:
            fail()
        return sample(self, label, *more)

    monkeypatch.setattr(type(generator), "sample", tight)


@pytest.mark.parametrize("fail", [on_accelerator, on_processor, in_numpy])
def test_a_smaller_batch_is_said_and_changes_no_image(entry, monkeypatch, fail):
    generator, order = from_pretrained(entry.folder), place(entry, [1, 2, 3], 3, 7, {}, Limits())
    expected = generating.fill(Watching(), generator, order)
    fail_above(monkeypatch, generator, 4, fail)
    watching = Watching()
    made = generating.fill(watching, generator, order)
    assert made.keys() == expected.keys() and all((made[i] - expected[i]).abs().max() <= 1 for i in made)
    assert watching.frames[0]["words"] == watching.frames[-1]["words"] == "short of memory: 4 at a time"
    assert "short of memory: 4 at a time" in markup.progress(watching.frames[-1])


def test_where_not_even_one_image_fits_that_is_said(entry, monkeypatch):
    generator, order = from_pretrained(entry.folder), place(entry, [1, 2, 3], 3, 7, {}, Limits())
    fail_above(monkeypatch, generator, 0, on_processor)
    with pytest.raises(GenlabError, match="one image does not fit"):
        generating.fill(Watching(), generator, order)


def test_other_errors_are_not_taken_for_it(entry, monkeypatch):
    def broken():
        raise RuntimeError("shapes cannot be multiplied")

    generator, order = from_pretrained(entry.folder), place(entry, [1, 2, 3], 3, 7, {}, Limits())
    fail_above(monkeypatch, generator, 4, broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        generating.fill(Watching(), generator, order)
