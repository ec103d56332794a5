"""Comparisons: what is taken and refused, that images are the command's, and that costs are counted, not guessed."""

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.pretrained import from_pretrained
from genlab.sampling import sample_images
from genlab.studio.catalog import Catalog
from genlab.studio.compare_markup import table
from genlab.studio.compare_orders import Comparison, adjustable, compare_models, compare_values, read_values
from genlab.studio.orders import Limits
from genlab.studio.store import Store
from genlab.studio.work import generating
from genlab.studio.work.workshop import Workshop
from genlab.studio.worker import perform

OTHER = {"process": {"name": "diffusion"}, "sampling": {"sampler": "ddim", "steps": 5, "guidance": 1.0}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "flow")
    write_run(folder / "diffusion", **OTHER)
    write_run(folder / "owls", class_names=["owl", *"123456789"])
    write_run(folder / "eagles", class_names=["eagle", *"123456789"])
    write_run(folder / "three", classes=3)
    write_run(folder / "plain", classes=0)
    return {entry.name: entry for entry in Catalog([folder]).refresh().entries.values()}


def side_by_side(runs, *names, classes=(1, 2), per_class=1, seed=0, **changes):
    return compare_models([runs[name] for name in names], list(classes), per_class, seed, changes, Limits())


def over(entry, varied, values, classes=(1, 2), per_class=1, **changes):
    return compare_values(entry, varied, values, list(classes), per_class, 0, changes, Limits())


def made(tmp_path, comparison, monkeypatch):
    """The finished job's state and folder, and the frames that were shown."""
    frames = []
    show = Store.show
    monkeypatch.setattr(generating, "pause", lambda *_: 0.0)  # every step is shown
    monkeypatch.setattr(Store, "show", lambda self, job, frame: (frames.append(frame), show(self, job, frame)))
    store = Store(tmp_path / "studio")
    store.submit("compare", "me", comparison.title, comparison.wants())
    job = store.claim("cpu")
    perform(store, job, Workshop("cpu"))
    assert store.state(job).status == "done", store.state(job).words
    return store.state(job).result, job.results, frames


def test_each_column_is_what_its_command_would_make(runs, tmp_path, monkeypatch):
    comparison = Comparison.of(side_by_side(runs, "flow", "diffusion", per_class=2, seed=7).wants())
    result, folder, _ = made(tmp_path, comparison, monkeypatch)
    assert len(result["columns"]) == 2
    for order, column in zip(comparison.orders, result["columns"]):
        generator = from_pretrained(order.entry.folder)
        (part,) = sample_images(generator, order.labels, 7, range(4), 64, order.settings)
        found = np.stack([np.asarray(Image.open(folder / name)) for name, _ in column["files"]])
        assert np.array_equal(found, part.images.permute(0, 2, 3, 1).numpy())
        assert column["parameters"] == sum(p.numel() for p in generator.network.parameters())
        assert order.command().startswith(f"genlab sample {order.entry.source} ") and column["seconds"] > 0
    with zipfile.ZipFile(folder / result["archive"]) as archive:
        names = [name for column in result["columns"] for name, _ in column["files"]]
        assert archive.testzip() is None and archive.namelist() == [*names, "comparison.json"]
        assert [row["run"] for row in json.loads(archive.read("comparison.json"))] == ["flow", "diffusion"]


def test_evaluations_are_counted(runs, tmp_path, monkeypatch):
    heun, plain = side_by_side(runs, "flow", "diffusion"), side_by_side(runs, "flow", "diffusion", guidance=1.0)
    for comparison, expected in ((heun, [4 * 2 * 2, 5]), (plain, [4 * 2, 5])):
        result, _, _ = made(tmp_path / str(expected[0]), comparison, monkeypatch)
        assert [column["evaluations"] for column in result["columns"]] == expected


def test_values_share_everything_else_and_news_come_on_the_way(runs, tmp_path, monkeypatch):
    comparison = over(runs["flow"], "steps", [8, 2, 2, 4], guidance=2.0)
    assert [order.settings.steps for order in comparison.orders] == [2, 4, 8]
    assert {order.settings.guidance for order in comparison.orders} == {2.0}
    result, _, frames = made(tmp_path, comparison, monkeypatch)
    assert [column["evaluations"] for column in result["columns"]] == [8, 16, 32]
    shares = [frame["done"] for frame in frames]
    assert shares == sorted(shares) and shares[-1] == 1
    forming = [frame["columns"][-1] for frame in frames if "pictures" in frame["columns"][-1]]
    assert len(forming) == 1 + 3 + 7 and all(len(column["pictures"]) == 2 for column in forming)
    assert {len(frame["columns"]) for frame in frames} == {1, 2, 3}


@pytest.mark.parametrize(
    "names, changes, said",
    [
        (["flow"], {}, "two to 4"),
        (["flow", "flow"], {}, "different models"),
        (["flow", "diffusion", "owls", "eagles", "three"], {}, "two to 4"),
        (["flow", "three"], {}, "flow has 10 classes, three has 3 classes"),
        (["flow", "plain"], {}, "plain has no classes"),
        (["owls", "eagles"], {"classes": [0]}, "'owl' for owls, but 'eagle' for eagles"),
        (["flow", "owls"], {"classes": ["owl"]}, "flow: class 'owl': unknown"),
        (["flow", "diffusion"], {"steps": 1}, "diffusion: .*steps"),
        (["flow", "diffusion"], {"sampler": "euler"}, "'sampler' cannot be changed here"),
        (["flow", "diffusion"], {"steps": 10**6}, "steps"),
        (["flow", "diffusion"], {"guidance": float("nan")}, "guidance"),
        (["flow", "diffusion"], {"per_class": 100}, "400 images in all"),
        (["flow", "diffusion"], {"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(runs, names, changes, said):
    with pytest.raises(GenlabError, match=said):
        side_by_side(runs, *names, **changes)


@pytest.mark.parametrize(
    "name, varied, values, said",
    [
        ("flow", "steps", [4], "two to 8"),
        ("flow", "steps", [4, 4], "two to 8"),
        ("flow", "steps", range(1, 20), "two to 8"),
        ("flow", "steps", [1, 2.5], "steps"),
        ("flow", "steps", [0, 1], "steps"),
        ("flow", "steps", [1, float("nan")], "no number"),
        ("flow", "steps", [1, True], "no number"),
        ("flow", "steps", "1, 2", "list of numbers"),
        ("flow", "steps", None, "list of numbers"),
        ("flow", "guidance", [1, float("inf")], "guidance"),
        ("flow", "sampler", [1, 2], "steps, guidance can be varied"),
        ("flow", ["steps"], [1, 2], "can be varied"),
        ("plain", "guidance", [1, 2], "steps can be varied"),
    ],
)
def test_values_that_make_no_sense_are_refused_in_words(runs, name, varied, values, said):
    with pytest.raises(GenlabError, match=said):
        over(runs[name], varied, values, classes=[] if name == "plain" else [1])


def test_a_setting_reaches_only_those_that_have_it(runs):
    assert adjustable(runs["plain"]) == ["steps"]
    comparison = side_by_side(runs, "flow", "owls", classes=[3], steps=9)
    assert [order.settings.steps for order in comparison.orders] == [9, 9]
    alone = over(runs["plain"], "steps", [1, 2], classes=[], guidance=3.0)
    assert {order.settings.guidance for order in alone.orders} == {1.5}


@given(st.lists(st.integers(0, 999) | st.floats(0, 99, allow_nan=False).map(lambda x: round(x, 3)), max_size=8))
def test_typed_values_are_read(numbers):
    for between in (", ", " ", ";", ",\n"):
        assert read_values(between.join(map(str, numbers))) == numbers


@pytest.mark.parametrize("typed", ["a", "1, two", "1e", "<b>", "1..2"])
def test_other_words_are_no_values(typed):
    with pytest.raises(GenlabError, match="no number"):
        read_values(typed)


def test_names_in_the_table_are_escaped(tmp_path):
    for name in ("a", "b"):
        run = write_run(tmp_path / name, export=False)
        description = json.loads((run / "generator.json").read_text())
        (run / "generator.json").write_text(json.dumps({**description, "name": f"<script>{name}"}))
    entries = list(Catalog([tmp_path]).refresh().entries.values())
    shown = table(compare_models(entries, [1], 1, 0, {}, Limits()), [])
    assert "<script>" not in shown and "&lt;script&gt;a" in shown and shown.count("…") == 6
