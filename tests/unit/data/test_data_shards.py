"""WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch

from genlab.core.errors import DataError
from genlab.data.shards import WebDataset, expand_braces


def _png(save, tmp_path, red):
    path = save(tmp_path / "scratch.png", (red, 0, 0))
    data = path.read_bytes()
    path.unlink()
    return data


def _write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path, save):
    """Three shards of four samples; the red value is the sample's number, the label its number modulo 3."""
    for shard in range(3):
        members = []
        for number in range(4 * shard, 4 * shard + 4):
            members.append((f"dir.x/{number:04d}.png", _png(save, tmp_path, number)))
            label = number % 3
            as_json = (f"dir.x/{number:04d}.json", json.dumps({"label": label, "text": "."}).encode())
            members.append(as_json if shard else (f"dir.x/{number:04d}.cls", str(label).encode()))
            members.append((f"dir.x/{number:04d}.note.txt", b"."))
        _write_tar(tmp_path / f"data/s-{shard:03d}.tar", members)
    return tmp_path / "data"


@pytest.mark.parametrize("pattern", ["", "/s-{000..002}.tar", "/*.tar", "/s-{000,001,002}.tar"])
def test_every_sample_is_found(shards, pattern):
    source = WebDataset(shards=f"{shards}{pattern}", size=8).build()
    images, labels = source.fetch(range(12))
    assert images[:, 0, 4, 4].tolist() == list(range(12))
    assert labels.tolist() == [number % 3 for number in range(12)]
    assert source.class_names == ("0", "1", "2")


def test_shards_written_by_webdataset_itself(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for number in range(5):
            image = torch.full((16, 16, 3), number / 10).numpy()
            writer.write({"__key__": f"k{number}", "png": image, "cls": number})
    images, labels = WebDataset(shards=str(tmp_path), size=16).build().fetch([4, 1])
    assert labels.tolist() == [4, 1]
    assert images[:, 0, 0, 0].tolist() == [102, 25]


def test_unlabelled(shards):
    source = WebDataset(shards=str(shards), labelled=False, size=8).build()
    assert source.num_classes == 0 and source.fetch([1, 2])[1].tolist() == [0, 0]


def test_names_and_held_out_shards(shards, tmp_path):
    (tmp_path / "names.txt").write_text("crane\ncrane\nowl")
    config = WebDataset(shards=str(shards), test_shards=f"{shards}/s-001.tar", class_names=tmp_path / "names.txt")
    assert config.build("test").class_names == ("crane", "crane", "owl")
    assert len(config.build("test")) == 4
    (tmp_path / "names.txt").write_text("crane")
    with pytest.raises(DataError, match="label 2 is out of range: there are 1 classes"):
        config.build()


def test_damaged_members_are_named(tmp_path):
    _write_tar(tmp_path / "x.tar", [("a.png", b""), ("a.cls", b"0")])
    with pytest.raises(DataError, match=r"x\.tar:a"):
        WebDataset(shards=str(tmp_path), size=8).build().fetch([0])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "neither .cls nor .json"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "no integer label"),
        ([("a.png", b"x"), ("a.json", b'{"other": 1}')], "no integer label"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "label -1"),
        ([("a.txt", b"x")], "no images there"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, members, message):
    _write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message):
        WebDataset(shards=str(tmp_path)).build()


def test_truncated_compressed_and_absent_shards(shards):
    whole = (shards / "s-000.tar").read_bytes()
    (shards / "s-000.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"s-000\.tar: not a whole"):
        WebDataset(shards=str(shards)).build()
    with tarfile.open(shards / "s-000.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="uncompressed"):
        WebDataset(shards=str(shards)).build()
    with pytest.raises(DataError, match=r"s-003\.tar: no such shard"):
        WebDataset(shards=f"{shards}/s-{{001..003}}.tar").build()
    with pytest.raises(DataError, match="download them"):
        WebDataset(shards="https://example.org/x.tar").build()


def test_braces():
    assert list(expand_braces("a")) == ["a"]
    assert list(expand_braces("{08..11}-{x,y}")) == [f"{n}-{c}" for n in ("08", "09", "10", "11") for c in "xy"]
