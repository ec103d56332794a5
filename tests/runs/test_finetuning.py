"""Fine-tuning as people do it: a base, a recipe that names it, an export that is whole and also a difference."""

import shutil

import pytest
import torch
from runs_support import RECIPE, checkpoints, genlab, tensors
from safetensors import safe_open
from safetensors.torch import load_file

from genlab.core.errors import CheckpointError
from genlab.pretrained import from_pretrained


@pytest.fixture(scope="module")
def tuned(trained, tmp_path_factory):
    """Ten steps of DiffFit at twice the resolution."""
    folder = tmp_path_factory.mktemp("tuned")
    recipe = RECIPE.replace("{name: digits}", "{name: digits, size: 16}")
    (folder / "tune.yaml").write_text(f"{recipe}finetune: {{base: '{trained}', method: {{name: difffit}}}}\n")
    order = ["train", folder / "tune.yaml", "training.images=320", "training.preview_every=320", "name=tuned"]
    assert genlab(*order, "--runs", folder) == 0
    return folder / "tuned"


def test_only_what_is_tuned_moved(trained, tuned):
    base = load_file(trained / "export/network.safetensors")  # its averages
    now = load_file(checkpoints(tuned)[-1] / "network.safetensors")
    moved = {name for name in base.keys() & now.keys() if base[name].shape == now[name].shape}
    moved = {name for name in moved if not base[name].equal(now[name])}
    frozen = {f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert frozen <= base.keys() and not frozen & moved
    assert "blocks.0.attn.qkv.bias" in moved
    saved = tensors(checkpoints(tuned)[-1])
    assert "network.ema-0.9/blocks.0.gamma1" in saved and "network.ema-0.9/blocks.0.attn.qkv.weight" not in saved


def test_the_merged_export_is_base_and_adapter(trained, tuned, tmp_path):
    whole = from_pretrained(tuned)
    alone = tmp_path / "alone"
    shutil.copytree(tuned / "export", alone)
    (alone / "network.safetensors").unlink()
    joined = from_pretrained(alone)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(joined.network.state_dict()[name], value, rtol=0, atol=1e-6)
    adapter = alone / "adapter.safetensors"
    assert adapter.stat().st_size < 0.2 * (tuned / "export/network.safetensors").stat().st_size
    with safe_open(adapter, "pt") as opened:
        assert opened.metadata()["base"] == str(trained)


def test_an_unfinished_run_and_its_export_are_the_same_network(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run, ignore=shutil.ignore_patterns("export"))
    for name, value in from_pretrained(run).network.state_dict().items():
        torch.testing.assert_close(value, from_pretrained(tuned).network.state_dict()[name], rtol=0, atol=0)


def test_commands_take_it_and_a_weaker_one_guides_it(trained, tuned, tmp_path, capsys):
    assert (
        genlab("sample", tuned, "--count", "4", "--autoguide", tuned, "--guidance", "2", "--out", tmp_path / "a") == 0
    )
    assert genlab("sample", tuned, "--count", "4", "--autoguide", trained, "--out", tmp_path / "b") == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_other_bases_are_refused_in_words(trained, tuned, tmp_path, capsys):
    recipe = tuned.parent / "tune.yaml"
    order = ["train", recipe, "name=other", "--runs", tmp_path]
    assert genlab(*order, "network.depth=2") == 2
    assert "built differently" in capsys.readouterr().err
    assert genlab(*order, f"finetune.base={tmp_path / 'nothing'}") == 2
    assert "no such run or export" in capsys.readouterr().err
    changed = tmp_path / "alone"
    shutil.copytree(tuned / "export", changed)
    (changed / "network.safetensors").unlink()
    text = (changed / "config.json").read_text()
    (changed / "config.json").write_text(text.replace(str(trained), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="cannot be used"):
        from_pretrained(changed)
