"""Folders of images: classes, names, damage."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from genlab.core.errors import DataError
from genlab.data.folder import Folder


def test_classes_are_the_sorted_sub_folders(class_folders):
    source = Folder(path=class_folders, size=8).build()
    assert source.class_names == ("a-ẞü", "b owl", "c")
    assert len(source) == 18
    images, labels = source.fetch(range(18))
    assert labels.tolist() == [0] * 6 + [1] * 8 + [2] * 4
    assert images[:, 0, 4, 4].tolist() == [60, 61, 62, 63, 64, 65, *range(8), 120, 121, 122, 123]
    assert images.shape == (18, 3, 8, 8)


def test_hidden_and_other_files_are_left_alone_and_sub_folders_searched(class_folders, save):
    save(class_folders / "c/deep/er/x.JPG")
    save(class_folders / ".cache/x.png")
    save(class_folders / "c/.x.png")
    (class_folders / "c/notes.txt").touch()
    (class_folders / "README").touch()
    assert len(Folder(path=class_folders).build()) == 19


def test_a_flat_folder_is_unlabelled(tmp_path, save):
    for number in range(3):
        save(tmp_path / f"{number}.png")
    source = Folder(path=tmp_path, size=8).build()
    assert (len(source), source.num_classes, source.class_names) == (3, 0, ())
    assert source.fetch([0, 2])[1].tolist() == [0, 0]


def test_one_class_counts_as_none(tmp_path, save):
    save(tmp_path / "cats/1.png")
    assert Folder(path=tmp_path).build().num_classes == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.json", json.dumps(["crane", "owl", "crane"])),
        ("names.json", json.dumps({"c": "crane", "a-ẞü": "crane", "b owl": "owl", "unused": "x"})),
        ("names.txt", "crane\nowl\ncrane\n"),
    ],
)
def test_readable_class_names(class_folders, tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert Folder(path=class_folders, class_names=tmp_path / file).build().class_names == ("crane", "owl", "crane")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.txt", "one\ntwo", "2 names for 3 classes"),
        ("n.json", '{"c": "x"}', "no name for 2 of 3 classes, first 'a-"),
        ("n.json", '["a", "b", 3]', "expected a list of names"),
        ("n.json", "{", "cannot be read"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit(class_folders, tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        Folder(path=class_folders, class_names=tmp_path / file).build()


def test_held_out_images_keep_the_labels_of_training(class_folders, tmp_path, save):
    save(tmp_path / "val/c/1.png")
    config = Folder(path=class_folders, test_path=tmp_path / "val")
    source = config.build("test")
    assert source.class_names == config.build().class_names
    assert source.fetch([0])[1].tolist() == [2]
    save(tmp_path / "val/zebra/1.png")
    with pytest.raises(DataError, match="'zebra' is not among the classes"):
        config.build("test")
    with pytest.raises(DataError, match=r"set data\.test_path"):
        Folder(path=class_folders).build("test")


def test_folders_that_cannot_be_meant(tmp_path, save):
    with pytest.raises(DataError, match="cannot be listed"):
        Folder(path=tmp_path / "absent").build()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images there"):
        Folder(path=tmp_path / "empty").build()
    save(tmp_path / "a/full/1.png")
    (tmp_path / "a/none").mkdir()
    with pytest.raises(DataError, match="a class without images"):
        Folder(path=tmp_path / "a").build()
    save(tmp_path / "mixed/c/1.png")
    save(tmp_path / "mixed/1.png")
    with pytest.raises(DataError, match="beside class folders"):
        Folder(path=tmp_path / "mixed").build()
    save(tmp_path / "splits/train/c/1.png")
    save(tmp_path / "splits/val/c/1.png")
    with pytest.raises(DataError, match="are splits, not classes"):
        Folder(path=tmp_path / "splits").build()


def test_damaged_images_are_replaced_by_the_next_and_listed_once(class_folders, photo_bytes, caplog):
    (class_folders / "a-ẞü/2.png").write_bytes(b"")
    (class_folders / "a-ẞü/3.png").write_bytes(photo_bytes[:500])
    (class_folders / "c/3.png").write_text("no image")
    source = Folder(path=class_folders, size=8, max_unreadable=0.2).build()
    assert source.unreadable() == {}
    with caplog.at_level(logging.WARNING):
        images, labels = source.fetch([1, 2, 3, 17])
        again, _ = source.fetch([1, 2, 3, 17])
    assert images[:, 0, 4, 4].tolist() == [61, 64, 64, 60 * 0 + 60]
    assert labels.tolist() == [0, 0, 0, 0], "the last image is replaced by the first of all, with its label"
    assert torch.equal(images, again)
    assert len(caplog.records) == 3
    reasons = {name.rsplit("/", 2)[-1]: reason for name, reason in source.unreadable().items()}
    assert len(source.unreadable()) == 3 and "empty file" in reasons.values()


def test_too_many_damaged_images_are_an_error(class_folders):
    for number in range(3):
        (class_folders / f"b owl/{number}.png").write_bytes(b"")
    source = Folder(path=class_folders, size=8, max_unreadable=0.12).build()
    with pytest.raises(
        DataError, match=r"3 of 18 images are unreadable.*0\.12.*b owl/0\.png, .*b owl/1\.png"
    ) as failure:
        source.fetch(range(18))
    assert len(str(failure.value).splitlines()) <= 2


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "1.png").touch()
    with pytest.raises(DataError, match="none of the 1 images"):
        Folder(path=tmp_path, max_unreadable=1.0).build().fetch([0])


def test_the_fingerprint_follows_data_and_transform(class_folders, save):
    before = Folder(path=class_folders, size=8).build().fingerprint()
    assert Folder(path=class_folders, size=8, max_unreadable=0.5).build().fingerprint() == before
    assert Folder(path=class_folders, size=16).build().fingerprint() != before
    assert Folder(path=class_folders, size=8, flip=True).build().fingerprint() != before
    moved = class_folders.rename(class_folders.with_name("elsewhere"))
    assert Folder(path=moved, size=8).build().fingerprint() == before
    save(moved / "c/new.png")
    assert Folder(path=moved, size=8).build().fingerprint() != before
