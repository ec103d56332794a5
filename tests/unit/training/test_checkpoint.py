"""Checkpoints are whole or absent, and say what is wrong with them."""

import json

import pytest
import torch

from genlab.core import weights
from genlab.core.errors import CheckpointError
from genlab.training import checkpoint


def write(root, images, value=1.0):
    return checkpoint.save(root, images, {"network": {"w": torch.full((64,), value)}}, {"identity": {}})


def test_round_trip(tmp_path):
    folder = write(tmp_path, 128, 3.0)
    assert checkpoint.read_state(folder)["images"] == 128
    assert torch.equal(weights.read_tensors(folder / "network.safetensors")["w"], torch.full((64,), 3.0))


@pytest.mark.parametrize("damage", ["truncate", "missing", "json", "foreign", "format", "header"])
def test_damage_is_named_and_an_earlier_one_is_used(tmp_path, damage):
    write(tmp_path, 100)
    folder = write(tmp_path, 200)
    weights, state = folder / "network.safetensors", folder / "state.json"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif damage == "missing":
        weights.unlink()
    elif damage == "json":
        state.write_text(state.read_text()[:30])
    elif damage == "foreign":
        state.write_text("[1, 2]")
    elif damage == "format":
        state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))
    else:
        weights.write_bytes(b"\xff" * weights.stat().st_size)
    found, problems = checkpoint.latest(tmp_path)
    assert found is not None and found.name == "000000100"
    assert len(problems) == 1 and "000000200" in problems[0]


def test_pruning_keeps_the_last_and_the_milestones(tmp_path):
    for images in range(100, 1100, 100):
        write(tmp_path, images)
    checkpoint.prune(tmp_path, keep_last=2, keep_every=500)
    assert [int(folder.name) for folder in checkpoint.list_checkpoints(tmp_path)] == [500, 900, 1000]


def test_other_settings_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"network\.depth was 4, is 6"):
        checkpoint.match_identity({"network.depth": 6, "seed": 0}, {"network.depth": 4, "seed": 0}, tmp_path)


def test_a_setting_that_an_older_checkpoint_does_not_know_may_be_empty(tmp_path):
    checkpoint.match_identity(
        {"training.ema_power": [], "seed": 0, "training.clip_value": None, "network.drop_path": 0.0},
        {"seed": 0},
        tmp_path,
    )
    with pytest.raises(CheckpointError, match="ema_power was None, is "):
        checkpoint.match_identity({"training.ema_power": [0.1], "seed": 0}, {"seed": 0}, tmp_path)


def test_another_architecture_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks b.*unknown c"):
        weights.match_names(["a", "b"], ["a", "c"], "x")
    with pytest.raises(CheckpointError, match=r"shape \(3,\), this run \(2,\)"):
        weights.fill(torch.zeros(2), torch.zeros(3), "w")
