"""Hugging Face data sets, all local."""

from __future__ import annotations

import io
from itertools import islice

import pytest
import torch
from PIL import Image

from genlab.core.errors import DataError
from genlab.data.huggingface import HuggingFace
from genlab.data.loader import batches

datasets = pytest.importorskip("datasets")
_COUNT = 23


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """`datasets` waits 5 seconds whenever it has shuffled the files of a stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def _encoded(number, damaged=()):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (number, 5, 5)).save(buffer, "PNG")
    return {"bytes": b"broken" if number in damaged else buffer.getvalue(), "path": None}


def _table(damaged=(), label=None, **columns):
    label = label or datasets.ClassLabel(names=["ant", "bee", "cow"])
    data = {"img": [_encoded(number, damaged) for number in range(_COUNT)], "kind": [n % 3 for n in range(_COUNT)]}
    features = datasets.Features({"img": datasets.Image(), "kind": label})
    return datasets.Dataset.from_dict(data, features=features)


@pytest.fixture
def saved(tmp_path):
    datasets.DatasetDict({"train": _table(), "test": _table().select(range(5))}).save_to_disk(tmp_path / "set")
    return str(tmp_path / "set")


@pytest.fixture
def parquet(tmp_path):
    for part in range(3):
        _table().shard(3, part, contiguous=True).to_parquet(tmp_path / "parquet" / f"train-{part}.parquet")
    return str(tmp_path / "parquet")


def test_saved_to_disk(saved):
    source = HuggingFace(path=saved, size=8).build()
    assert source.class_names == ("ant", "bee", "cow")
    images, labels = source.fetch([7, 0, 22])
    assert images[:, 0, 4, 4].tolist() == [7, 0, 22]
    assert labels.tolist() == [1, 0, 1]
    assert len(HuggingFace(path=saved).build("test")) == 5


def test_parquet_files_and_an_image_folder(parquet, class_folders):
    assert len(HuggingFace(path=parquet).build()) == _COUNT
    assert len(HuggingFace(path=f"{parquet}/train-0.parquet").build()) == 8
    source = HuggingFace(path=str(class_folders), size=8).build()
    assert source.class_names == ("a-ẞü", "b owl", "c")
    assert source.fetch([0])[0][0, 0, 4, 4] == 60


def test_text_labels_and_labels_without_names(tmp_path):
    plain = _table(label=datasets.Value("int64"))
    plain.rename_column("kind", "label").save_to_disk(tmp_path / "int")
    assert HuggingFace(path=str(tmp_path / "int")).build().class_names == ("0", "1", "2")
    words = plain.remove_columns("kind").add_column("label", [["owl", "crane"][n % 2] for n in range(_COUNT)])
    words.save_to_disk(tmp_path / "text")
    source = HuggingFace(path=str(tmp_path / "text")).build()
    assert source.class_names == ("crane", "owl")
    assert source.fetch([0, 1])[1].tolist() == [1, 0]


def test_unlabelled(saved):
    source = HuggingFace(path=saved, labelled=False, size=8).build()
    assert source.num_classes == 0 and source.fetch([1])[1].tolist() == [0]


def test_hidden_labels_are_refused(tmp_path):
    table = datasets.Dataset.from_dict({"img": [_encoded(0)], "label": [-1]})
    table.cast_column("img", datasets.Image()).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="1 of 1 rows have no known class"):
        HuggingFace(path=str(tmp_path / "set")).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "all"}, "no split 'all', only train, test"),
        ({"image_column": "x"}, "no column 'x'; there are img, kind"),
        ({"label_column": "x"}, "no column 'x'"),
        ({"image_column": None, "path": "/nowhere/at/all"}, "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded(saved, options, message):
    with pytest.raises(DataError, match=message) as failure:
        HuggingFace(**({"path": saved} | options)).build()
    assert len(str(failure.value).splitlines()) == 1


def test_damaged_rows_are_replaced(tmp_path):
    _table(damaged={4, 5}).save_to_disk(tmp_path / "set")
    source = HuggingFace(path=str(tmp_path / "set"), size=8, max_unreadable=0.1).build()
    assert source.fetch([4])[0][0, 0, 4, 4] == 6
    assert len(source.unreadable()) == 2


def _take(config, count, **options):
    options = {"seed": 3, "batch": 6, "micro_batch": 3} | options
    return list(islice(batches(config.build(), **options), count))


def _reds(parts):
    return torch.cat([part.images[:, 0, 4, 4] for part in parts]).tolist()


@pytest.fixture(params=["saved", "parquet"])
def streaming(request):
    return HuggingFace(path=request.getfixturevalue(request.param), size=8, streaming=True, buffer=10)


def test_a_stream_gives_every_image_once_an_epoch(streaming):
    parts = _take(streaming, _COUNT, batch=2, micro_batch=2)
    reds = _reds(parts)
    assert sorted(reds[:_COUNT]) == sorted(reds[_COUNT:]) == list(range(_COUNT))
    assert reds[:_COUNT] != reds[_COUNT:] and reds[:_COUNT] != list(range(_COUNT))
    assert torch.cat([part.label for part in parts]).tolist() == [red % 3 for red in reds]
    assert streaming.build().class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_and_is_shared_out_exactly(streaming, workers):
    straight = _reds(_take(streaming, 20, workers=0))
    assert _reds(_take(streaming, 20, workers=workers)) == straight
    assert _reds(_take(streaming, 4, start=48, workers=workers)) == straight[48:]
    shares = [_reds(_take(streaming, 10, world=2, rank=rank, workers=workers)) for rank in range(2)]
    together = [red for step in range(10) for share in shares for red in share[3 * step : 3 * step + 3]]
    assert together == straight


def test_a_stream_replaces_damaged_images_alike_for_all_ranks(tmp_path):
    _table(damaged={4, 5, 11}).save_to_disk(tmp_path / "set")
    config = HuggingFace(path=str(tmp_path / "set"), size=8, streaming=True, buffer=5, flip=True)
    straight = _take(config, 8)
    reds = _reds(straight)
    assert not {4, 5, 11} & set(reds)
    shares = [_reds(_take(config, 4, world=2, rank=rank)) for rank in range(2)]
    assert [red for step in range(4) for share in shares for red in share[3 * step : 3 * step + 3]] == reds


def test_a_stream_of_damaged_images_is_an_error(tmp_path):
    _table(damaged=range(_COUNT)).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="images read are damaged"):
        _take(HuggingFace(path=str(tmp_path / "set"), size=8, streaming=True), 5)


def test_a_stream_must_tell_its_classes(tmp_path):
    _table(label=datasets.Value("int64")).rename_column("kind", "label").save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"set data\.class_names"):
        HuggingFace(path=str(tmp_path / "set"), streaming=True).build()
