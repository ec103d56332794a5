"""Edits that a page asks for: what is taken, what is refused, and that the command makes the same images."""

import io
import json
import math
import shlex
import zipfile

import numpy as np
import pytest
from PIL import Image
from studio_runs import write_run

from genlab import cli
from genlab.core.errors import GenlabError
from genlab.studio.catalog import Catalog
from genlab.studio.edit_orders import CELLS, IMAGE, MASK, Edit, EditOrder, place_edit
from genlab.studio.edit_pictures import MADE, take
from genlab.studio.orders import Limits
from genlab.studio.store import State, Store
from genlab.studio.work.workshop import Workshop
from genlab.studio.worker import perform

XAR = {
    "network": {"name": "xar", "width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "entity_size": 4},
    "process": {"name": "next_x"},
    "sampling": {"steps": 2},
}
RIGHT = ("0" * 8 + "f" * 8) * CELLS  # the right half, as a page draws it


def entry_of(run):
    (entry,) = Catalog([run]).refresh().entries.values()
    return entry


@pytest.fixture
def entry(tmp_path):
    return entry_of(write_run(tmp_path / "tiny"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "studio")


def order(entry, **edit):
    return place_edit(entry, [3, 7], 1, 5, {"steps": 3}, edit, Limits())


def png(size=(8, 8), left=None):
    """A picture of noise, or a mask that is white from column `left` on."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if left is not None:
        pixels[:, :left], pixels[:, left:] = 0, 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def made(store, order, files):
    """The job that fills an order, once it is over, and its state."""
    job = store.submit("edit", "me", "title", json.loads(json.dumps(order.wants())), files)
    store.claim("cpu")
    perform(store, job, Workshop("cpu"))
    return job, store.state(job)


def pixels(job, name):
    with Image.open(job.results / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "edit, said",
    [
        ({}, "nothing says what"),
        ({"region": "../../etc"}, "region"),
        ({"region": ["left half"]}, "region"),
        ({"cells": "ff"}, "damaged"),
        ({"cells": "g" * 1024}, "damaged"),
        ({"cells": 3}, "damaged"),
        ({"strength": 0}, "strength"),
        ({"strength": math.nan}, "strength"),
        ({"strength": True}, "strength"),
        ({"strength": "0.5"}, "strength"),
        ({"share": 0.0}, "size on the canvas"),
        ({"share": 1e9}, "size on the canvas"),
        ({"share": 0.5, "left": -1}, "left"),
        ({"share": 0.5, "top": math.inf}, "top"),
        ({"from_scale": 1}, "no scales"),
    ],
)
def test_nonsense_is_refused_in_words(entry, edit, said):
    with pytest.raises(GenlabError, match=said) as caught:
        order(entry, **edit)
    assert len(str(caught.value)) < 300


def test_what_a_generator_cannot_do_is_refused(tmp_path):
    xar = entry_of(write_run(tmp_path / "xar", **XAR))
    assert xar.edits == {"mask", "parts"} and order(xar, from_scale=2).edit == Edit(from_scale=2)
    with pytest.raises(GenlabError, match="leave the strength out"):
        order(xar, strength=0.5)
    network = {"name": "interval_dit", "depth": 1, "width": 32, "heads": 2}
    changes = {"network": network, "process": {"name": "shortcut"}, "sampling": {}}
    shortcut = entry_of(write_run(tmp_path / "shortcut", **changes))
    with pytest.raises(GenlabError, match="cannot change images"):
        place_edit(shortcut, [1], 1, 0, {}, {"region": "middle"}, Limits())


def test_orders_survive_the_way_to_the_worker(entry):
    given = order(entry, cells=RIGHT, share=0.5, left=0.25, strength=0.7)
    assert EditOrder.of(json.loads(json.dumps(given.wants()))) == given


@pytest.mark.parametrize("edit", [{"cells": RIGHT}, {"region": "right half"}, {"masked": True}])
def test_what_is_not_chosen_stays(store, entry, edit):
    job, state = made(store, order(entry, **edit), {IMAGE: png(), MASK: png(left=4)})
    assert state.status == "done", state.words
    assert [name for name, _ in state.result["given"]] == ["image.png", "mask.png"]
    own, mask = pixels(job, "image.png"), pixels(job, "mask.png")
    assert np.array_equal(own, np.asarray(Image.open(io.BytesIO(png())))) and (mask[:, 4:] == 255).all()
    assert not mask[:, :4].any()
    for name, _ in state.result["files"]:
        grey = pixels(job, name).astype(int)
        assert np.abs(grey[:, :4] - own[:, :4].mean(2, keepdims=True)).max() < 3  # this tokenizer is grey
        assert np.abs(grey[:, 4:] - own[:, 4:].mean(2, keepdims=True)).max() > 3


def test_an_image_is_laid_on_its_canvas(store, entry):
    job, state = made(store, order(entry, share=0.5, left=1.0, top=0.0), {IMAGE: png((40, 60))})
    assert state.status == "done", state.words
    mask = pixels(job, "mask.png")[..., 0]
    assert not mask[:4, 4:].any() and (mask == 0).sum() == 16


@pytest.mark.parametrize("edit", [{"cells": RIGHT, "strength": 0.8}, {"strength": 0.4}])
def test_the_command_makes_the_same_of_the_files_in_the_archive(store, entry, tmp_path, monkeypatch, edit):
    given = order(entry, **edit)
    job, state = made(store, given, {IMAGE: png((30, 20))})
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(job.results / state.result["archive"]) as archive:
        archive.extractall()
    cli.app(args=[*shlex.split(given.command())[1:], "--out", "out"], standalone_mode=False)
    for name, _ in state.result["files"]:
        assert np.array_equal(pixels(job, name), np.asarray(Image.open(tmp_path / "out" / name).convert("RGB")))
    told = json.loads(Image.open(job.results / name).text["genlab"])["edit"]
    assert told["strength"] == edit["strength"] and len(told["image_digest"]) == 16


@pytest.mark.parametrize(
    "files, said",
    [
        ({IMAGE: b"no image"}, "not a PNG"),
        ({IMAGE: png(), MASK: png((4, 4))}, "must agree"),
        ({IMAGE: png(), MASK: png(left=8)}, "give a mask"),
    ],
)
def test_files_that_cannot_be_used_are_named(store, entry, files, said):
    assert said in made(store, order(entry, masked=True), {MASK: png(), **files})[1].words


def test_images_at_hand(store, entry):
    first, last = (take(store, "me", entry, "digits", number) for number in (0, 1797 * 3 - 1))
    assert (first.number, last.number) == (0, 1796) and first.data != last.data
    with pytest.raises(GenlabError, match="no image has been made yet"):
        take(store, "me", entry, MADE, 0)
    with pytest.raises(GenlabError, match="not offered"):
        take(store, "me", entry, "../../etc", 0)
    job = store.submit("generate", "me", "title", {})
    (job.results / "one.png").write_bytes(png())
    store.claim("cpu")
    store.finish(job, State("done", result={"files": [("one.png", "1")]}))
    assert take(store, "me", entry, MADE, 5) == (png(), 0)
    with pytest.raises(GenlabError, match="no image has been made yet"):
        take(store, "somebody else", entry, MADE, 0)
