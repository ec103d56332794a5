"""The catalog reads what has changed, and nothing else."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from studio_runs import write_run

from genlab.studio import catalog as catalogs
from genlab.studio.catalog import Catalog


@pytest.fixture
def reads(monkeypatch):
    """The folders that descriptions of generators were read from."""
    read, seen = catalogs.read_entry, []
    monkeypatch.setattr(catalogs, "read_entry", lambda source, run: (seen.append(run.name), read(source, run))[1])
    return seen


def names(scan):
    return sorted(entry.name for entry in scan.entries.values())


def test_a_second_look_reads_what_has_changed_alone(tmp_path, reads):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name)
    catalog = Catalog([tmp_path])
    assert names(catalog.refresh()) == names(catalog.refresh()) == ["a", "b", "c"]
    assert sorted(reads) == ["a", "b", "c"]
    file = tmp_path / "b" / "export" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": "renamed"}))
    shutil.rmtree(tmp_path / "c")
    write_run(tmp_path / "d")
    assert names(catalog.refresh()) == ["a", "d", "renamed"]
    assert sorted(reads[3:]) == ["b", "d"]


def test_a_broken_run_stays_a_note_until_it_is_mended(tmp_path):
    file = write_run(tmp_path / "a") / "export" / "config.json"
    sound = file.read_text()
    file.write_text("{")
    catalog = Catalog([tmp_path])
    for _ in range(2):
        scan = catalog.refresh()
        assert not scan.entries and "damaged" in scan.notes[0]
    file.write_text(sound)
    assert names(catalog.refresh()) == ["a"]


def test_a_run_is_found_from_its_first_checkpoint_on(tmp_path):
    run = write_run(tmp_path / "a", export=False)
    (run / "checkpoints").rename(tmp_path / "kept")
    catalog = Catalog([tmp_path])
    assert any("no checkpoint yet" in note for note in catalog.refresh().notes)
    (tmp_path / "kept").rename(run / "checkpoints")
    assert names(catalog.refresh()) == ["a"]


def test_many_pages_may_look_at_once(tmp_path):
    write_run(tmp_path / "a")
    catalog = Catalog([tmp_path])
    with ThreadPoolExecutor(8) as pool:
        assert all(names(scan) == ["a"] for scan in pool.map(lambda _: catalog.refresh(), range(40)))
