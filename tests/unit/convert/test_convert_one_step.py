"""`genlab convert` of one-step generators: files in their published layouts become exports that sample the same."""

import argparse
import pickle
import re
import sys
import types
from itertools import accumulate

import numpy as np
import pytest
import torch
import yaml

from genlab.commands.convert import Options, convert
from genlab.convert import flax_pickle
from genlab.convert.generators import recognise
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError
from genlab.networks.imf_dit import PRESETS, IMFDiT, IMFDiTConfig
from genlab.networks.interval_dit import IntervalDiT
from genlab.pretrained import from_pretrained
from samplers.noise import spawn

SIZES = {"grid": (8, 8), "channels": 1, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}


def awake(network):
    """With random weights everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def interval_dit():
    return awake(IntervalDiT(**SIZES))


def port(network):
    """The PyTorch port of MeanFlow: SiT's names, and a second embedder."""
    names = {"t_embedder.time.": "t_embedder.", "t_embedder.interval.": "r_embedder."}
    return {
        re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], name): value.clone()
        for name, value in network.state_dict().items()
    }


def flax_wrapped(network):
    """The PyTorch branch of improved MeanFlow: layers inside wrappers that are named after flax's."""
    state = {}
    for name, value in network.state_dict().items():
        module, _, leaf = name.rpartition(".")
        ending = "_flax_embedding" if module.endswith("embedding_table") else "_flax_linear"
        layer = value.dim() == 2 or (value.dim() == 1 and leaf == "bias")
        own = layer and leaf in ("weight", "bias") and "x_embedder" not in name
        state[f"{module}.{ending}.{leaf}" if own else name] = value.clone()
    return state


def tree(network):
    """The flax tree of shortcut models, whose attention divides by the width of a head."""
    state, root = network.state_dict(), SIZES["width"] // SIZES["heads"]
    layers = {
        "PatchEmbed_0/Conv_0": "x_embedder.proj",
        "TimestepEmbedder_0/Dense_0": "t_embedder.time.mlp.0",
        "TimestepEmbedder_0/Dense_1": "t_embedder.time.mlp.2",
        "TimestepEmbedder_1/Dense_0": "t_embedder.interval.mlp.0",
        "TimestepEmbedder_1/Dense_1": "t_embedder.interval.mlp.2",
        "FinalLayer_0/Dense_0": "final_layer.adaLN_modulation.1",
        "FinalLayer_0/Dense_1": "final_layer.linear",
    }
    for i in range(SIZES["depth"]):
        ours = {"Dense_0": "adaLN_modulation.1", "Dense_4": "attn.proj"}
        ours |= {"MlpBlock_0/Dense_0": "mlp.fc1", "MlpBlock_0/Dense_1": "mlp.fc2"}
        layers |= {f"DiTBlock_{i}/{theirs}": f"blocks.{i}.{name}" for theirs, name in ours.items()}
        for leaf in ("weight", "bias"):
            q, k, v = state[f"blocks.{i}.attn.qkv.{leaf}"].chunk(3)
            state |= {f"k.{i}.{leaf}": k, f"q.{i}.{leaf}": q * root**0.5, f"v.{i}.{leaf}": v}
        layers |= {f"DiTBlock_{i}/Dense_{number}": f"{part}.{i}" for number, part in enumerate("kqv", start=1)}
    made = {"Embed_0": {"embedding": np.zeros((256, 1), np.float32)}}
    put(made, "LabelEmbedder_0/Embed_0/embedding", state["y_embedder.embedding_table.weight"])
    for theirs, ours in layers.items():
        weight = state[f"{ours}.weight"]
        put(made, f"{theirs}/kernel", weight.permute(2, 3, 1, 0) if weight.dim() == 4 else weight.T)
        put(made, f"{theirs}/bias", state[f"{ours}.bias"])
    return made


def put(tree, path, value):
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value.numpy().copy()


class OptimizerState(tuple):
    """A class that the reader must not import."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the file was run')",)


def recipe(folder, process, network):
    content = {
        "data": {"name": "digits"},
        "tokenizer": {"name": "pixels", "channels": 1},
        "network": {"name": network},
        "process": {"name": process},
        "training": {"images": 1280},
        "sampling": {"steps": 2},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def same(network, other):
    x, t, label = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 5])
    torch.testing.assert_close(network(x, t, label, t / 2), other(x, t, label, t / 2), rtol=1e-4, atol=1e-5)


def sampled(folder):
    images = from_pretrained(folder).sample(torch.tensor([1, 2]), spawn(0, range(2)))
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


@torch.no_grad()
def test_the_port_of_mean_flow_gives_averages_or_raw_weights(tmp_path, capsys):
    average, raw = interval_dit(), interval_dit()
    raw.final_layer.linear.bias.add_(1)
    content = {"model": port(raw), "ema": port(average), "opt": {}, "args": argparse.Namespace(lr=1), "steps": 7}
    torch.save(content, tmp_path / "0000007.pt")
    file = recipe(tmp_path, "mean_flow", "interval_dit")
    for weights, network, words in (("ema", average, "averaged weights"), ("raw", raw, "raw weights")):
        convert(str(tmp_path / "0000007.pt"), tmp_path / weights, Options(None, file, weights, heads=2, classes=5))
        said = capsys.readouterr().out
        assert words in said and "meanflow of no published size" in said
        same(from_pretrained(tmp_path / weights).network, network)
        sampled(tmp_path / weights)
    with pytest.raises(CheckpointError, match="by its weights meanflow, not sit"):
        convert(str(tmp_path / "0000007.pt"), tmp_path / "none", Options("sit", file, heads=2))


@pytest.mark.parametrize("velocity_head", [True, False])
@torch.no_grad()
def test_improved_mean_flow_with_and_without_the_head_for_training(velocity_head, tmp_path, capsys):
    network = awake(IMFDiT(**SIZES, head_depth=1, mlp_ratio=2.7, time_tokens=3, velocity_head=velocity_head))
    torch.save(flax_wrapped(network), tmp_path / "iMF.pth")
    options = Options("imf", recipe(tmp_path, "improved_mean_flow", "imf_dit"))
    convert(str(tmp_path / "iMF.pth"), tmp_path / "out", options)
    assert "imf of no published size" in capsys.readouterr().out
    same(from_pretrained(tmp_path / "out").network, network)
    sampled(tmp_path / "out")


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes_of_improved_mean_flow_have_their_names(name):
    with torch.device("meta"):
        spec = LatentSpec("continuous", 4, (32, 32), 256)
        network = IMFDiTConfig(preset=name, velocity_head=False).build(spec, 1000)
    found = recognise(flax_wrapped(network), "file")
    assert (found.families, found.preset, found.grid, found.num_classes) == (("imf",), name, (32, 32), 1000)
    assert IMFDiTConfig(**found.section) == IMFDiTConfig(preset=name, velocity_head=False)


@torch.no_grad()
def test_shortcut_models_come_as_pickles_of_which_nothing_is_run(tmp_path, capsys):
    networks = {"ema": interval_dit(), "raw": interval_dit()}
    networks["raw"].final_layer.linear.bias.add_(1)
    trees = {"params_ema": tree(networks["ema"]), "params": tree(networks["raw"])}
    content = {"train_state": {**trees, "opt_state": OptimizerState(), "step": np.int32(5)}, "_timestamp": 0.0}
    file = recipe(tmp_path, "shortcut", "interval_dit")
    for protocol in (4, 5):
        (tmp_path / "shortcut").write_bytes(pickle.dumps(content, protocol))
        for weights, network in networks.items():
            convert(str(tmp_path / "shortcut"), tmp_path / weights, Options(None, file, weights, heads=2, classes=5))
            assert "shortcut of no published size" in capsys.readouterr().out
            same(from_pretrained(tmp_path / weights).network, network)
    sampled(tmp_path / "ema")


def test_arrays_of_jax_and_dicts_of_flax_are_read_without_them(tmp_path, monkeypatch):
    def stand_in(module, name):
        made = types.ModuleType(module)
        exec(f"def {name}(*parts): raise AssertionError", made.__dict__)
        for parent in accumulate(module.split("."), "{}.{}".format):
            monkeypatch.setitem(sys.modules, parent, made)
        return made.__dict__[name]

    rebuild = stand_in("jax._src.array", "_reconstruct_array")
    freeze = stand_in("flax.core.frozen_dict", "FrozenDict")

    class Array:
        def __reduce__(self):
            return rebuild, (*np.arange(3, dtype=np.float32).__reduce__(), {"weak_type": False})

    class Frozen:
        def __reduce__(self):
            return freeze, ({"kernel": Array(), "step": np.int32(1)},)

    (tmp_path / "tree").write_bytes(pickle.dumps({"Dense_0": Frozen()}))
    monkeypatch.undo()
    found = flax_pickle.flat(flax_pickle.read(tmp_path / "tree"))
    assert list(found) == ["Dense_0/kernel"] and found["Dense_0/kernel"].tolist() == [0, 1, 2]


def test_what_is_no_shortcut_model_is_named(tmp_path):
    whole = {"train_state": {"params": tree(interval_dit())}}
    half = tree(interval_dit())
    del half["DiTBlock_1"]["Dense_4"]
    file = recipe(tmp_path, "shortcut", "interval_dit")
    cases = [
        (pickle.dumps(whole)[:3000], {}, "half a file"),
        (pickle.dumps({"weights": [1, 2]}), {}, "no checkpoint of shortcut models"),
        (pickle.dumps(whole), {}, "has no ema weights, only model"),
        (pickle.dumps({"params_ema": half}), {"heads": 2}, "parameter 'DiTBlock_1/Dense_4' is missing"),
        (pickle.dumps({"params_ema": whole["train_state"]["params"]}), {}, "no published size"),
    ]
    for content, options, message in cases:
        (tmp_path / "file.pkl").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            convert(str(tmp_path / "file.pkl"), tmp_path / "out", Options("shortcut", file, **options))
        assert not (tmp_path / "out").exists()


FILES = {
    "meanflow": (IntervalDiT, {}, port),
    "shortcut": (IntervalDiT, {}, lambda network: flax_pickle.flat(tree(network))),
    "imf": (IMFDiT, {"head_depth": 1}, flax_wrapped),
}


@pytest.mark.parametrize("family", FILES)
def test_the_published_recipe_is_taken_and_asks_for_its_tokenizer(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, options, official = FILES[family]
    torch.save(official(awake(network(**{**SIZES, "channels": 4}, **options))), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="genlab convert stabilityai/sd-vae-ft-mse -o tokenizers/sd-vae-ft-mse"):
        convert(str(tmp_path / "weights.pth"), tmp_path / "out", Options(family, heads=2))
