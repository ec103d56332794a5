"""Sampling in real processes: image i of a seed is itself, however it was made, and is made once."""

import signal

import numpy as np
import pytest
from PIL import Image
from runs_support import genlab, interrupted, two
from safetensors.numpy import load_file

from genlab.core.errors import GenlabError

SAMPLE = "genlab/sample.py"
ORDER = ("--count", "24", "--seed", "3")


@pytest.fixture(scope="module")
def straight(trained, tmp_path_factory):
    """24 images made at once, by one process."""
    out = tmp_path_factory.mktemp("straight") / "out"
    assert genlab("sample", trained, *ORDER, "--batch", "24", "--out", out) == 0
    return out


def pixels(folder):
    """int16 [N,R,R,3], after checking that the folder holds whole images, the plan and the grid, and nothing else."""
    files = sorted(folder.glob("[0-9]*-*.png"))
    assert {file.name for file in folder.iterdir()} == {file.name for file in files} | {"grid.png", "plan.json"}
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.int16)


def assert_same_images(got, expected):
    """Equal but for sums of float32 in another order, which move a pixel by one level now and then."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1 and (got != expected).mean() < 0.01


def test_a_folder_holds_each_class_in_turn(straight):
    names = [file.name for file in sorted(straight.glob("[0-9]*-*.png"))]
    assert names == [f"{i:06d}-{i % 10:04d}.png" for i in range(24)]
    made = pixels(straight)
    assert made.shape == (24, 8, 8, 3) and len(np.unique(made.reshape(24, -1), axis=0)) == 24


def test_batches_and_processes_make_the_same_images(trained, straight, tmp_path):
    two(SAMPLE, trained, *ORDER, "--batch", "5", "--out", tmp_path / "two")
    assert_same_images(pixels(tmp_path / "two"), pixels(straight))


def test_another_seed_makes_others(trained, straight, tmp_path):
    assert genlab("sample", trained, "--count", "24", "--seed", "4", "--out", tmp_path / "other") == 0
    assert (pixels(tmp_path / "other") != pixels(straight)).any(axis=(1, 2, 3)).all()


def test_a_killed_one_goes_on_where_it_was(trained, straight, tmp_path, capsys):
    out = tmp_path / "out"
    order = (trained, *ORDER, "--batch", "4", "--out", out)
    interrupted(10, signal.SIGKILL, out / "0000", SAMPLE, *order, expect=-signal.SIGKILL)  # before the tenth is whole
    done = {file: file.stat().st_mtime_ns for file in out.glob("[0-9]*-*.png")}
    for file in done:
        Image.open(file).load()
    assert genlab("sample", *order) == 0
    assert len(done) == 9 and "24 images (15 new)" in capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == moment for file, moment in done.items())
    assert_same_images(pixels(out), pixels(straight))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_one_file_holds_the_same_images(suffix, trained, straight, tmp_path):
    out = tmp_path / f"all{suffix}"
    assert genlab("sample", trained, *ORDER, "--batch", "7", "--out", out) == 0
    assert list(tmp_path.iterdir()) == [out]
    if suffix == ".npz":
        with np.load(out) as found:
            images, label = found["arr_0"], found["label"]
    else:
        found = load_file(out)
        images, label = found["images"].transpose(0, 2, 3, 1), found["label"]
    assert images.dtype == np.uint8 and label.tolist() == [i % 10 for i in range(24)]
    assert_same_images(images.astype(np.int16), pixels(straight))


def test_a_killed_file_leaves_parts_that_are_used(trained, straight, tmp_path, capsys):
    out = tmp_path / "all.npz"
    order = (trained, *ORDER, "--batch", "4", "--out", out)
    interrupted(3, signal.SIGKILL, tmp_path / "all.npz.parts/0000", SAMPLE, *order, expect=-signal.SIGKILL)
    assert not out.exists()
    assert genlab("sample", *order) == 0
    assert "24 images (16 new)" in capsys.readouterr().out and list(tmp_path.iterdir()) == [out]
    with np.load(out) as found:
        assert_same_images(found["arr_0"].astype(np.int16), pixels(straight))


def test_samples_of_another_order_are_not_mixed_in(trained, straight, capsys):
    before = pixels(straight)
    assert genlab("sample", trained, "--count", "24", "--seed", "4", "--out", straight) == 2
    assert "holds samples of other settings (seed)" in capsys.readouterr().err
    assert (pixels(straight) == before).all()


def test_classes_are_chosen_by_name(trained, tmp_path, capsys):
    assert genlab("sample", trained, "--classes", "7,3", "--per-class", "2", "--out", tmp_path / "few") == 0
    names = sorted(file.name for file in (tmp_path / "few").glob("[0-9]*-*.png"))
    assert sorted(name[7:11] for name in names) == ["0003", "0003", "0007", "0007"]
    assert genlab("sample", trained, "--classes", "seven", "--out", tmp_path / "none") == 2
    assert "class 'seven': unknown" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_error_has_a_line_of_its_own_and_leaves_the_folder_free(trained, tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise GenlabError("this setting cannot be used")
        yield

    monkeypatch.setattr("genlab.commands.sample.sample_images", broken)
    assert genlab("sample", trained, "--count", "2", "--out", tmp_path / "few") == 2
    assert "\ngenlab: this setting cannot be used\n" in capsys.readouterr().err
    monkeypatch.undo()  # and the folder, in which there are no images, takes other settings
    assert genlab("sample", trained, "--count", "3", "--out", tmp_path / "few") == 0
