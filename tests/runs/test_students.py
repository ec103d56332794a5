"""Several students as one run: training, resuming, one export, and what goes wrong."""

import json
import shutil

import pytest
import torch
import yaml
from runs_support import checkpoints, contents, genlab, tensors

from genlab.core.errors import CheckpointError, GenlabError
from genlab.pretrained import from_pretrained
from samplers.noise import spawn

TEACHER = """
data: {name: digits}
tokenizer: {name: pixels, channels: 1}
network: {name: dit, depth: 1, width: 32, heads: 2, patch: 4}
process: {name: flow}
training: {images: 64, batch: 32, ema: [0.9], preview_count: 4}
sampling: {steps: 2}
"""
STUDENTS = """
data: {name: digits}
tokenizer: {name: pixels, channels: 1}
network: {name: dit, depth: 1, width: 32, heads: 2, patch: 4}
process: {name: few_step, base: {name: flow}, levels: 2}
training: {images: 128, batch: 32, lr: 1.0e-3, ema: [0.5], preview_count: 4, checkpoint_every: 64}
sampling: {}
distillation:
  name: multi_student
  students: 3
  partition: {name: random, seed: 1}
  each: {name: dmd2, teacher: TEACHER, critic_updates: 2, gan_weight: 0.0}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "teacher.yaml").write_text(TEACHER)
    assert genlab("train", folder / "teacher.yaml", "name=teacher", "--runs", folder) == 0
    return folder / "teacher"


@pytest.fixture(scope="module")
def recipe(teacher):
    file = teacher.parent / "students.yaml"
    file.write_text(STUDENTS.replace("TEACHER", str(teacher)))
    return file


@pytest.fixture(scope="module")
def trained(recipe):
    """A finished run. Tests leave it as it is."""
    assert genlab("train", recipe, "name=whole", "--runs", recipe.parent) == 0
    return recipe.parent / "whole"


def test_the_run_is_one_generator_that_sends_each_class_to_its_student(trained):
    generator = from_pretrained(trained)
    owners = generator.network.owners[:-1].tolist()
    assert sorted(map(owners.count, range(3))) == [3, 3, 4]
    label, rng = torch.arange(10), spawn(5, range(10))
    images = generator.sample(label, rng)
    for k in range(3):
        alone = from_pretrained(trained / "students" / str(k))
        own = (torch.tensor(owners) == k).nonzero().flatten()
        torch.testing.assert_close(images[own], alone.sample(own, spawn(5, own.tolist())))
    with pytest.raises(GenlabError, match="without a class"):
        generator.sample(torch.tensor([10]), spawn(0, [0]))


def test_students_differ_though_they_start_alike(trained):
    first, second = (yaml.safe_load((trained / "students" / k / "config.yaml").read_text()) for k in "01")
    assert first["seed"] != second["seed"]
    assert first["distillation"] == second["distillation"]


def test_the_run_is_sampled_as_any_other(trained, tmp_path):
    assert genlab("sample", trained, "--out", tmp_path / "pictures", "--count", 10) == 0
    assert len(list((tmp_path / "pictures").rglob("0*.png"))) == 10


def test_one_student_at_a_time_in_any_order_gives_the_same(recipe, trained, capsys):
    for k in (2, 0, 1):
        assert genlab("train", recipe, "name=array", "--runs", recipe.parent, "--student", k) == 0
        assert ("still to be trained" in capsys.readouterr().out) == (k != 1)
    ours, theirs = recipe.parent / "array" / "export", trained / "export"
    got, expected = tensors(ours), tensors(theirs)
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    before = contents(ours.parent / "students" / "0" / "checkpoints")
    assert genlab("train", recipe, "name=array", "--runs", recipe.parent) == 0  # nothing is left to do
    assert contents(ours.parent / "students" / "0" / "checkpoints") == before


def test_an_unfinished_student_is_continued(recipe, trained):
    run = recipe.parent / "continued"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "export")
    shutil.rmtree(checkpoints(run / "students" / "1")[-1])
    assert genlab("train", recipe, "name=continued", "--runs", recipe.parent) == 0
    got, expected = tensors(run / "export"), tensors(trained / "export")
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_what_does_not_belong_together_is_refused(recipe, trained, tmp_path, capsys):
    run = tmp_path / "broken"
    shutil.copytree(trained, run)
    assert genlab("train", recipe, "name=broken", "distillation.partition.seed=2", "--runs", tmp_path) == 2
    assert "distillation.partition.seed was 1, is 2" in capsys.readouterr().err
    assert genlab("train", recipe, "name=broken", "--runs", tmp_path, "--student", 3) == 2
    assert "students 0..2" in capsys.readouterr().err
    file = run / "students" / "1" / "partition.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"class_to_student": [0, 1, 2] * 3 + [0]}))
    assert genlab("export", run) == 2
    assert "under another partition" in capsys.readouterr().err
    shutil.rmtree(run / "students" / "1")
    assert genlab("export", run) == 2
    assert "student 1 of 3 has no weights yet" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        from_pretrained(run / "students" / "1")


def test_a_second_stage_starts_from_students_of_the_same_partition(recipe, trained, capsys):
    start = f"distillation.each.init={trained}/students/{{student}}"
    words = ("train", recipe, "--runs", recipe.parent, start, "training.images=32", "training.lr=1e-12")
    assert genlab(*words, "name=second") == 0
    got, expected = tensors(recipe.parent / "second" / "export"), tensors(trained / "export")
    assert all(torch.allclose(got[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert genlab(*words, "name=third", "distillation.partition.seed=2") == 2
    assert "under another partition" in capsys.readouterr().err


def test_a_smaller_network_matches_its_teacher_and_starts_a_student(teacher, capsys):
    folder = teacher.parent
    small = STUDENTS.replace("width: 32, heads: 2", "width: 16, heads: 2")
    tsm = yaml.safe_load(TEACHER.replace("width: 32", "width: 16"))
    tsm["distillation"] = {"name": "score_matching", "teacher": str(teacher)}
    (folder / "tsm.yaml").write_text(yaml.safe_dump(tsm))
    assert genlab("train", folder / "tsm.yaml", "name=tsm", "--runs", folder) == 0
    assert from_pretrained(folder / "tsm").network.blocks[0].attn.qkv.weight.shape[1] == 16
    tree = yaml.safe_load(small.replace("TEACHER", str(teacher)))
    tree["distillation"] |= {"students": 2}
    tree["distillation"]["each"] |= {"init": str(folder / "tsm")}
    tree["training"] |= {"images": 32, "lr": 1e-12}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    assert genlab("train", folder / "small.yaml", "name=small", "--runs", folder) == 0
    start, end = from_pretrained(folder / "tsm").network, from_pretrained(folder / "small").network
    torch.testing.assert_close(end.students[1].state_dict(), start.state_dict())
