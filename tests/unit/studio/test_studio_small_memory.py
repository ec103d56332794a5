"""Out of memory: half as many at a time, and the visitor is told."""

import torch
from studio_runs import write_run

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


def test_a_smaller_batch_is_said_and_changes_no_image(tmp_path, monkeypatch):
    run = write_run(tmp_path / "tiny")
    (entry,) = Catalog([run]).refresh().entries.values()
    generator, order = from_pretrained(entry.folder), place(entry, [1, 2, 3], 3, 7, {}, Limits())
    expected = generating.fill(Watching(), generator, order)
    sample = type(generator).sample

    def tight(self, label, *more):
        if len(label) > 4:
            raise torch.OutOfMemoryError
        return sample(self, label, *more)

    monkeypatch.setattr(type(generator), "sample", tight)
    watching = Watching()
    made = generating.fill(watching, generator, order)
    assert made.keys() == expected.keys() and all((made[i] - expected[i]).abs().max() <= 1 for i in made)
    assert watching.frames[0]["words"] == watching.frames[-1]["words"] == "short of memory: 4 at a time"
    assert "short of memory: 4 at a time" in markup.progress(watching.frames[-1])
