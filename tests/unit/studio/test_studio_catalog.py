"""What a scan finds, and what it says of the rest."""

import json
import time

import pytest
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.studio.catalog import Catalog


def test_runs_and_exports_are_found_with_what_they_are(tmp_path):
    run = write_run(tmp_path / "finished", images=2560)
    write_run(tmp_path / "training", class_names=["<script>", *"abcdefghi"], export=False)
    write_run(tmp_path / "plain", classes=0)
    by_name = {entry.name: entry for entry in Catalog([tmp_path]).refresh().entries.values()}
    assert {name: entry.images for name, entry in by_name.items()} == {
        "finished": 2560,
        "training": 1280,
        "plain": 1280,
    }
    assert by_name["training"].class_names[0] == "<script>" and by_name["training"].null_label == 10
    assert by_name["plain"].null_label is None and by_name["finished"].sampling.steps == 4
    assert [entry.source for entry in Catalog([run / "export"]).refresh().entries.values()] == [str(run / "export")]
    (alone,) = Catalog([run]).refresh().entries.values()
    assert alone.id == by_name["finished"].id


def damage_json(run):
    (run / "export" / "config.json").write_text('{"name": ')


def damage_process(run):
    file = run / "export" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "process": {"name": "no-such"}}))


def damage_list(run):
    (run / "export" / "config.json").write_text("[" * 100_000)


def name_own_code(run):
    file = run / "export" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "network": {"name": "os:system"}}))


@pytest.mark.parametrize("damage", [damage_json, damage_process, damage_list, name_own_code])
def test_broken_runs_are_left_out_and_named(tmp_path, damage):
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "bad"))
    scan = Catalog([tmp_path]).refresh()
    assert [entry.name for entry in scan.entries.values()] == ["good"]
    assert len(scan.notes) == 1 and str(tmp_path / "bad") in scan.notes[0]


def test_foreign_folders_are_left_out_and_named(tmp_path):
    inside = tmp_path / "inside"
    write_run(tmp_path / "outside")
    (inside / "holiday").mkdir(parents=True)
    (inside / ".hidden").mkdir()
    (inside / "file").write_text("x")
    (inside / "link").symlink_to(tmp_path / "outside")
    scan = Catalog([inside, tmp_path / "missing"]).refresh()
    assert not scan.entries
    assert [any(word in note for note in scan.notes) for word in ("holiday", "link", "missing")] == [True] * 3
    assert len(scan.notes) == 3


@pytest.mark.parametrize(
    "run", ["../tiny", "/etc/passwd", "tiny", "", None, 7, ["x"], {"path": "/etc"}, "%2e%2e/x", "\x00"]
)
def test_only_ids_of_a_scan_open_anything(tmp_path, run):
    write_run(tmp_path / "tiny")
    catalog = Catalog([tmp_path])
    catalog.refresh()
    with pytest.raises(GenlabError, match="no such run"):
        catalog.get(run)


def test_two_hundred_runs_are_scanned_in_a_moment(tmp_path):
    source = write_run(tmp_path / "r0")
    config = (source / "export" / "config.json").read_text()
    for number in range(1, 200):
        folder = tmp_path / f"r{number}" / "export"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
    begun = time.perf_counter()
    assert len(Catalog([tmp_path]).refresh().entries) == 200
    assert time.perf_counter() - begun < 2.0
