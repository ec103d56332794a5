"""Evaluating in real processes: reports, and scores that do not depend on how they were come by."""

import json
import shutil
import signal

import numpy as np
import pytest
import yaml
from PIL import Image
from runs_support import genlab, interrupted, two
from sklearn.datasets import load_digits

EVALUATE = "genlab/evaluate.py"
QUICK = ("--extractor", "pixels", "--metrics", "class_accuracy,fid,recall", "--samples", "64")
COUNT = 140  # three blocks of images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures of digits to score, and others to score them against."""
    root, digits = tmp_path_factory.mktemp("pictures"), load_digits().images
    for name, start in (("scored", 0), ("reference", 1000)):
        (root / name).mkdir()
        for number, digit in enumerate(digits[start : start + COUNT]):
            Image.fromarray(np.uint8(digit * 15.9)).save(root / name / f"{number:04d}.png")
    return root / "scored", root / "reference"


@pytest.fixture(scope="module")
def offline(folders):
    """What is asked of the extractor that comes with pip."""
    scored, reference = folders
    metrics = "fid,kid,precision,recall,is"
    return scored, "--against", reference, "--protocol", "offline", "--metrics", metrics, "--samples", COUNT


@pytest.fixture(scope="module")
def straight(offline, tmp_path_factory):
    """The report of one process that was left alone."""
    out = tmp_path_factory.mktemp("straight") / "report"
    assert genlab("evaluate", *offline, "--out", out) == 0
    return report(out)


@pytest.fixture
def copy(trained, tmp_path):
    """The trained run, for reports to go into."""
    return shutil.copytree(trained, tmp_path / "tiny")


def report(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.json"]
    page = (folder / "report.html").read_text()
    assert page.startswith("<!") and "data:image/png;base64," in page
    return json.loads((folder / "report.json").read_text())


def values(tree):
    return {score["name"]: score["value"] for score in tree["scores"]}


def test_a_run_is_scored_against_its_data(copy, capsys):
    assert genlab("evaluate", copy, "--against", "digits", *QUICK) == 0
    tree = report(copy / "evaluation/digits")
    assert 0 <= values(tree)["class_accuracy"] <= 1 and len(tree["scores"]) == 3
    assert tree["samples"] == 64 and tree["protocol"]["name"] == "digits"
    assert "class_accuracy" in capsys.readouterr().out


def test_pictures_are_scored_on_the_stand_in(straight):
    scores = values(straight)
    assert set(scores) == {f"{name}_efflite0" for name in ("fd", "kd", "precision", "recall", "is")}
    assert all(np.isfinite(value) for value in scores.values())
    assert any("NOT FID" in banner for banner in straight["banners"])


def test_two_processes_find_the_same(offline, straight, tmp_path):
    two(EVALUATE, *map(str, offline), "--out", tmp_path / "two")
    assert values(report(tmp_path / "two")) == pytest.approx(values(straight), rel=1e-9, abs=1e-12)


def test_a_killed_one_goes_on_and_finds_the_same(offline, straight, tmp_path):
    out = tmp_path / "killed"
    words = (*map(str, offline), "--out", out, "--save-every", "64")
    states = out / ".progress/state-"
    interrupted(2, signal.SIGKILL, states, EVALUATE, *words, expect=-signal.SIGKILL)  # the first is whole
    assert not (out / "report.json").exists()
    assert genlab("evaluate", *words) == 0
    tree = report(out)
    assert any("images were done by an interrupted run" in warning for warning in tree["warnings"])
    assert values(tree) == pytest.approx(values(straight), rel=1e-9, abs=1e-12)


def test_check_holds_a_run_to_its_recipe(copy, capsys):
    check = ("evaluate", copy, *QUICK, "--check")
    assert genlab(*check) == 1
    assert "off by" in capsys.readouterr().out
    found = values(report(copy / "evaluation/digits"))["class_accuracy"]
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["expected"][0]["value"] = found
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert genlab(*check) == 0
    del config["expected"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert genlab(*check) == 2
    assert "expects no score" in capsys.readouterr().err


def test_two_runs_side_by_side(trained, tmp_path, capsys):
    for name, guidance in (("plain", "1"), ("guided", "3")):
        shutil.copytree(trained, tmp_path / name)
        assert genlab("evaluate", tmp_path / name, *QUICK, "--guidance", guidance) == 0
    capsys.readouterr()
    assert genlab("compare", tmp_path / "plain", tmp_path / "guided", "--out", tmp_path / "both") == 0
    page = (tmp_path / "both/comparison.html").read_text()
    assert "plain" in page and "guided" in page and "recall" in page
    assert "recall" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "no picture"])
def test_a_damaged_picture_is_named(damage, folders, tmp_path, capsys):
    scored = shutil.copytree(folders[0], tmp_path / "scored")
    file = scored / "0077.png"
    file.write_bytes(file.read_bytes()[:-30] if damage == "truncated" else b"words")
    words = ("--against", folders[1], "--extractor", "pixels", "--metrics", "fid", "--out", tmp_path / "report")
    assert genlab("evaluate", scored, *words) == 2
    said = capsys.readouterr().err
    assert f"genlab: {file}: " in said and "Traceback" not in said
    assert not (tmp_path / "report/report.json").exists()


def test_nothing_to_score_is_said(tmp_path, capsys):
    assert genlab("evaluate", tmp_path / "nowhere", "--against", "digits", *QUICK) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_reference_that_is_not_there_is_said_before_an_extractor_is_had(trained, tmp_path, capsys):
    words = ("--against", tmp_path / "nowhere", "--weights", tmp_path / "no-weights.pth", "--protocol", "standard")
    assert genlab("evaluate", trained, *words) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said and "no-weights" not in said
