"""Distillation in real processes: two train as one, what is missing is told at once, a student is a run like any."""

import json

import pytest
from runs_support import assert_same_weights, checkpoints, genlab, python, two

from genlab.pretrained import from_pretrained
from samplers.noise import spawn

TRAIN = "genlab/train.py"
RECIPE = """
data: {{name: digits}}
tokenizer: {{name: pixels, channels: 1}}
network: {{name: dit, depth: 1, width: 32, heads: 2, patch: 2}}
process: {{name: few_step, base: {{name: flow}}, levels: 2}}
distillation:
  name: dmd2
  teacher: {teacher}
  teacher_guidance: 2.0
  critic_updates: 2
  gan_weight: 0.5
  gan_balance: true
training:
  images: 128
  batch: 32
  lr: 1.0e-3
  ema: [0.9]
  checkpoint_every: 32
  preview_count: 4
  log_every: 32
"""


@pytest.fixture
def student(trained, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text(RECIPE.format(teacher=trained))
    return file


def test_two_processes_distil_as_one_and_leave_a_generator(student, tmp_path):
    python(TRAIN, student, "name=one", "--runs", tmp_path)
    two(TRAIN, student, "name=two", "--runs", tmp_path)
    assert_same_weights(tmp_path / "two", tmp_path / "one", tolerance=2e-5)
    run = tmp_path / "one"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all({"critic/denoising", "critic/logit_real"} <= set(line) for line in lines)
    assert "network/gradient" in lines[0] and "network/gradient" not in lines[1]
    assert {file.name for file in (run / "export").iterdir()} == {"config.json", "network.safetensors", "README.md"}
    generator = from_pretrained(run)
    label = spawn(0, range(4)).integers(10)
    assert generator.sample(label, spawn(0, range(4))).shape == (4, 3, 8, 8)
    assert json.loads((run / "generator.json").read_text())["distilled"]["by"] == "dmd2"
    assert len(checkpoints(run)) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            ["distillation.teacher=runs/nobody", "distillation.recipe=configs/digits/dit_flow.yaml"],
            "another architecture",
        ),
        (["distillation.teacher=runs/nobody", "distillation.init=fresh"], "distillation.teacher: runs/nobody"),
        (["tokenizer.std=0.5"], "give both the same data and tokenizer"),
        (["process.levels=[0.5, 0.2]"], "from noise to data"),
        (["distillation=null"], "learns from a teacher"),
    ],
)
def test_what_does_not_fit_ends_with_two(changes, complaint, student, tmp_path, capsys):
    assert genlab("train", student, *changes, "--runs", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert said.startswith("genlab: ") and complaint in said
    assert not (tmp_path / "runs").exists()
