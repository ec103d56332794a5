"""Training in real processes: what it leaves, and that nothing which ends it early costs more than time."""

import json
import random
import shutil
import signal

import pytest
import torch
from PIL import Image
from runs_support import assert_same_weights, checkpoints, contents, genlab, interrupted, python, tensors, two

from genlab import config as configs
from genlab.pretrained import from_pretrained

TRAIN = "genlab/train.py"


@pytest.fixture
def copy(trained, tmp_path):
    """The trained run, to be spoilt."""
    return shutil.copytree(trained, tmp_path / "tiny")


def test_accelerate_launch_leaves_a_whole_run(trained, recipe):
    assert configs.load(trained / "config.yaml") == configs.load(recipe, ["name=tiny"])
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(32, 641, 32))
    assert all(line["loss"] > 0 and line["images_per_second"] > 0 for line in lines)
    assert [file.name for file in sorted((trained / "samples").iterdir())] == ["000000320.png", "000000640.png"]
    Image.open(trained / "samples/000000640.png").verify()
    assert [folder.name for folder in checkpoints(trained)] == ["000000576", "000000640"]
    averaged, last = from_pretrained(trained / "export").network.state_dict(), tensors(checkpoints(trained)[-1])
    assert all(torch.equal(value, last[f"network.ema-0.9/{name}"]) for name, value in averaged.items())
    assert (trained / "export/README.md").read_text().startswith("---")
    assert not list(trained.rglob(".unfinished-*"))


def test_two_processes_train_as_one(trained, recipe, tmp_path):
    two(TRAIN, recipe, "name=two", "--runs", tmp_path)
    assert_same_weights(tmp_path / "two", trained, tolerance=1e-6)


def test_whatever_ends_it_the_same_command_continues(trained, recipe, tmp_path):
    run, words = tmp_path / "ended", (recipe, "name=ended", "--runs", tmp_path)
    moment = random.Random(2)
    for _ in range(4):  # some while a checkpoint is written, and no one reaches the end
        interrupted(moment.randint(1, 40), signal.SIGKILL, run, TRAIN, *words, expect=-signal.SIGKILL)
    asked = interrupted(6, signal.SIGTERM, run / "log.jsonl", TRAIN, *words, expect=0)
    assert "The same command continues" in asked.out
    stopped = checkpoints(run)[-1]
    assert 0 < int(stopped.name) < 640 and f"stopped at {int(stopped.name)} of 640" in asked.out
    assert f"continuing {stopped}" in python(TRAIN, *words).out
    assert_same_weights(run, trained)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in log] == list(range(32, 641, 32))
    assert not list(run.rglob(".unfinished-*"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copy, trained, recipe, tmp_path):
    *_, before, newest = checkpoints(copy)
    weights = newest / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = python(TRAIN, recipe, "name=tiny", "--runs", tmp_path).out
    assert f"skipped a damaged checkpoint: {weights}: is truncated" in said and f"continuing {before}" in said
    assert_same_weights(copy, trained)


def test_a_checkpoint_of_other_settings_is_refused(copy, recipe, tmp_path):
    everything = contents(copy)
    said = python(TRAIN, recipe, "name=tiny", "network.width=64", "--runs", tmp_path, expect=2).err
    assert "Traceback" not in said
    (message,) = [line for line in said.splitlines() if line.startswith("genlab: ")]
    assert "saved with other settings" in message and "network.width was 32, is 64" in message
    assert len(said.strip().splitlines()) <= 2
    assert contents(copy) == everything


def test_resume_never_spares_what_is_there(copy, recipe, tmp_path, capsys):
    everything = contents(copy)
    assert genlab("train", recipe, "name=tiny", "--runs", tmp_path, "--resume", "never") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"genlab: {copy}: holds checkpoints already") and said.count("\n") == 1
    assert contents(copy) == everything


def test_a_dry_run_leaves_nothing(recipe, tmp_path):
    said = python(TRAIN, recipe, "--dry-run", "--runs", tmp_path / "runs").out
    for word in ("width: 32", "parameters:", "images per second:", "memory per process:", "time to finish:"):
        assert word in said
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe, tmp_path):
    absurd = ("name=absurd", "training.lr=100", "training.checkpoint_every=32")
    said = python(TRAIN, recipe, *absurd, "--runs", tmp_path, expect=2).err
    run, last = tmp_path / "absurd", checkpoints(tmp_path / "absurd")[-1]
    assert f"({int(last.name)} images): stopped before the update" in said and "Traceback" not in said
    assert f"step {int(last.name) // 32} " in said
    assert all(value.isfinite().all() for name, value in tensors(last).items() if name.startswith("network/"))
    assert not (run / "export").exists() and not list(run.rglob(".unfinished-*"))


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("network.widht=64", "widht"),
        ("training.images=few", "few"),
        ("process.name=flwo", "flow"),
        ("network.patch=3", "patch"),
        ("nonsense", "section.key=value"),
    ],
)
def test_a_broken_config_ends_with_two(change, complaint, recipe, tmp_path, capsys):
    assert genlab("train", recipe, change, "--runs", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert said.startswith("genlab: ") and complaint in said and said.count("\n") <= 2
    assert not (tmp_path / "runs").exists()
