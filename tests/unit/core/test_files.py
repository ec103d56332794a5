"""Files and folders appear whole or not at all."""

import errno

import pytest

from genlab.core.errors import GenlabError
from genlab.core.files import remove_unfinished, whole_file, whole_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), whole_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("one", "two"):
        with whole_folder(tmp_path / "out") as temporary:
            (temporary / text).write_text(text)
    assert names(tmp_path / "out") == ["two"] and names(tmp_path) == ["out"]


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(GenlabError, match="disk is full"), whole_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_removed(tmp_path):
    context = whole_folder(tmp_path / "out")
    context.__enter__()  # and never left, as if killed
    write_text(tmp_path / "kept", "x")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["kept"]
