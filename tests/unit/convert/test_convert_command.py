"""`genlab convert`: files under official names become exports that give the same outputs."""

import argparse
import json

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file

from genlab.commands import convert as command
from genlab.commands.convert import Options, convert
from genlab.commands.convert_to_diffusers import to_diffusers
from genlab.convert import arflow, dimr, edm, fetch, var, xar
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.arflow import ARFlow
from genlab.networks.dimr import DiMR
from genlab.networks.dit import DiT
from genlab.networks.edm2 import Edm2
from genlab.networks.edm_unet import EdmUNet
from genlab.networks.fit import FiT
from genlab.networks.xar import XAR
from genlab.pretrained import from_pretrained
from genlab.tokenization import storage
from genlab.tokenization.kl import KL
from genlab.tokenization.multiscale import FlexibleVQ, MultiscaleVQ
from genlab.tokenization.quantizers.multiscale import MultiscaleQuantization
from genlab.tokenization.quantizers.vector import LearnedVQ
from samplers.noise import spawn

SIZES = {"grid": (8, 8), "channels": 1, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}
STAGES = [
    {"block": "transformer", "width": 16, "depth": 3, "patch": 2, "heads": 2},
    {"block": "convnext", "width": 8, "depth": 3, "kernel": 3},
]
FLOW = {"process": {"name": "flow"}, "sampling": {"sampler": "euler", "steps": 2}}
DIFFUSION = {"process": {"name": "diffusion", "variance": "learned_range"}, "sampling": {"sampler": "ddpm", "steps": 2}}
VP = {"process": {"name": "vp", "resolutions": 2}, "sampling": {"steps": 3}}
SEQUENCES = {"process": {"name": "arflow"}, "sampling": {"steps": 3}}
NEXT_X = {"process": {"name": "next_x"}, "sampling": {"steps": 2}}
EDM = {"process": {"name": "edm"}, "sampling": {"steps": 2}}
UNET = {"grid": (8, 8), "channels": 1, "num_classes": 5, "width": 8, "multipliers": (1, 2), "blocks": 1}
KL_SIZES = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "channels": 2, "std": (0.5,)}


def awake(network):
    """With random weights everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def recipe(folder, parts, network="dit", **changes):
    """A recipe for digits whose network is another one than the checkpoint's."""
    tree = {"data": {"name": "digits"}, "tokenizer": {"name": "pixels", "channels": 1}, "network": {"name": network}}
    if network == "dimr":
        tree["network"]["stages"] = STAGES
    tree |= {"training": {"images": 1280}, **parts, **changes}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(tree))))
    return file


def same_output(network, other, channels=1):
    x, t = torch.randn(3, channels, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    label = torch.tensor([0, 4, 5])
    torch.testing.assert_close(network(x, t, label), other(x, t, label), rtol=1e-5, atol=1e-6)


GENERATORS = {
    "dit": (lambda: DiT(**SIZES, learn_sigma=True), DIFFUSION, "dit", lambda network: network.state_dict()),
    "sit": (lambda: DiT(**SIZES), FLOW, "dit", lambda network: network.state_dict()),
    "lightningdit": (
        lambda: DiT(**SIZES, rms_norm=True, swiglu=True, rope=True, patch=1),
        FLOW,
        "dit",
        lambda network: network.state_dict() | {"feat_rope.freqs_cos": torch.ones(64, 8)},
    ),
    "dimr": (
        lambda: DiMR((8, 8), 1, STAGES, num_classes=5),
        VP,
        "dimr",
        lambda network: dimr.to_official(network, network.state_dict()),
    ),
    "fit": (lambda: FiT(**SIZES), FLOW, "fit", lambda network: network.state_dict()),
    "arflow": (lambda: ARFlow(**SIZES), SEQUENCES, "arflow", arflow.save),
    "xar": (
        lambda: XAR((8, 8), 1, width=16, encoder_depth=1, decoder_depth=2, heads=2, num_classes=5),
        NEXT_X,
        "xar",
        xar.save,
    ),
    "edm": (
        lambda: EdmUNet(**UNET, attention=(), augment_features=9),
        EDM,
        "edm",
        lambda network: edm.official(network, network.state_dict()),
    ),
    "edm2": (lambda: Edm2(**UNET), EDM, "edm2", lambda network: edm.official(network, network.state_dict())),
}


@pytest.mark.parametrize("family", GENERATORS)
@torch.no_grad()
def test_a_published_file_becomes_an_export(family, tmp_path, capsys):
    make, parts, name, official = GENERATORS[family]
    network = awake(make())
    state = {key: value.clone() for key, value in official(network).items()}
    torch.save(state, tmp_path / "weights.pt")
    file = recipe(tmp_path, parts, name)
    options = Options(family if family in ("dit", "sit") else None, file, heads=2, classes=5)
    convert(str(tmp_path / "weights.pt"), tmp_path / "out", options)
    said = capsys.readouterr().out
    assert f"{family} of no published size" in said and "5 classes" in said and "the only weights" in said
    generator = from_pretrained(tmp_path / "out")
    same_output(network, generator.network)
    images = generator.sample(torch.tensor([1, 2]), spawn(0, range(2)))
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()
    with safe_open(tmp_path / "out" / "network.safetensors", "pt") as opened:
        header = opened.metadata()
    assert header["family"] == family and header["source"] == "weights.pt"
    assert "weights.pt" in (tmp_path / "out" / "README.md").read_text()


SCALES, VOCAB = (1, 2, 4), 13
AUTOENCODER = {"width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2, "scales": SCALES, "channels": 4}
TOKENIZERS = {
    "var": MultiscaleVQ(**AUTOENCODER, quantizer=MultiscaleQuantization(vocab=VOCAB)),
    "flexvar": FlexibleVQ(**AUTOENCODER, code_channels=4, quantizer=LearnedVQ(vocab=VOCAB, unit=True)),
}


@pytest.mark.parametrize("family", var.NETWORKS)
@torch.no_grad()
def test_next_scale_generators_take_the_schedule_of_their_tokenizer(family, tmp_path, capsys):
    tokenizer = TOKENIZERS.get(family, TOKENIZERS["var"])
    storage.save_tokenizer(tmp_path / "vq", tokenizer, awake(tokenizer.build(8)), {"name": "tiny", "image_size": 8})
    sizes = {"channels": 4, "num_classes": 5, "width": 32, "depth": 2, "heads": 2}
    network = awake(var.NETWORKS[family](SCALES, vocab=VOCAB, **sizes))
    derived = {"lvl_1L": torch.zeros(1, 21), "attn_bias_for_masking": torch.zeros(1, 1, 21, 21)}
    weights = {f"_orig_mod.{key}": value for key, value in network.state_dict().items()} | derived
    content = {"trainer": {"var_wo_ddp": weights, "vae_local": tokenizer.build(8).state_dict()}, "epoch": 3}
    source = saved(tmp_path / "last.pth", content)
    trained = {"name": "trained", "path": str(tmp_path / "vq")}
    parts = {"process": {"name": "next_scale"}, "sampling": {"guidance": 2.0}}
    given = {"data": {"name": "fractals", "size": 8}, "tokenizer": trained}
    options = Options(recipe=recipe(tmp_path, parts, family, **given))
    convert(source, tmp_path / "out", options)
    assert f"{family} of no published size" in capsys.readouterr().out
    generator = from_pretrained(tmp_path / "out")
    codes, label = torch.randint(VOCAB, (2, 21), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 5])
    inputs = generator.tokenizer.inputs(codes)
    torch.testing.assert_close(generator.network(inputs, label), network(inputs, label))
    assert generator.sample(label, spawn(0, range(2))).shape == (2, 3, 8, 8)

    other = var.NETWORKS[family](SCALES, vocab=VOCAB + 1, **sizes)
    with pytest.raises(CheckpointError, match=r"14 codes, tokenizer trained of .* has 13"):
        convert(saved(tmp_path / "other.pth", other.state_dict()), tmp_path / "none", options)
    if family != "flexvar":
        other = var.NETWORKS[family]((1, 3, 4), vocab=VOCAB, **sizes)
        with pytest.raises(CheckpointError, match="26 positions are of no published schedule"):
            convert(saved(tmp_path / "other.pth", other.state_dict()), tmp_path / "none", options)


def test_averages_of_xar_and_edm_come_first(tmp_path, capsys, monkeypatch):
    networks = [awake(GENERATORS["xar"][0]()), GENERATORS["xar"][0]().eval()]
    content = {"model_ema": xar.save(networks[0]), "model": xar.save(networks[1]), "epoch": 1}
    source, file = saved(tmp_path / "last.pth", content), recipe(tmp_path, NEXT_X, "xar")
    for weights, network in zip(("ema", "raw"), networks):
        convert(source, tmp_path / weights, Options(recipe=file, weights=weights))
        same_output(from_pretrained(tmp_path / weights).network, network)
    network = awake(Edm2(**UNET))
    monkeypatch.setattr(edm, "read_pickle", lambda path: edm.official(network, network.state_dict()))
    (tmp_path / "edm2-img8.pkl").write_bytes(b"pickle")
    convert(str(tmp_path / "edm2-img8.pkl"), tmp_path / "edm2", Options(recipe=recipe(tmp_path, EDM, "edm2")))
    same_output(from_pretrained(tmp_path / "edm2").network, network)
    assert "averaged weights (EMA)" in capsys.readouterr().out.splitlines()[-1]


def test_ema_or_raw_weights_of_a_trainers_checkpoint(tmp_path, capsys):
    raw, average = awake(DiT(**SIZES)), DiT(**SIZES)
    content = {"model": raw.state_dict(), "ema": average.state_dict(), "opt": {}, "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "0001000.pt")
    for weights, expected, words in (("ema", average, "averaged weights"), ("raw", raw, "raw weights")):
        options = Options("sit", recipe(tmp_path, FLOW), weights, heads=2)
        convert(str(tmp_path / "0001000.pt"), tmp_path / weights, options)
        same_output(from_pretrained(tmp_path / weights).network, expected)
        assert words in capsys.readouterr().out


def saved(path, state):
    torch.save(state, path)
    return str(path)


def test_what_cannot_be_converted_is_named(tmp_path):
    state = awake(DiT(**SIZES)).state_dict()
    file, good, out = recipe(tmp_path, FLOW), saved(tmp_path / "good.pt", state), tmp_path / "out"
    half = {key: value for key, value in state.items() if not key.startswith("blocks.1.mlp")}
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tmp_path / "good.pt").read_bytes()[:3000])
    learned = recipe(tmp_path, DIFFUSION).rename(tmp_path / "learned.yaml")
    wide = recipe(tmp_path, FLOW, tokenizer={"name": "pixels"}).rename(tmp_path / "wide.yaml")
    file = recipe(tmp_path, FLOW)
    cases = [
        (good, Options(None, file, heads=2), "add --from dit or --from sit"),
        (good, Options("dimr", file, heads=2), "by its weights dit or sit, not dimr"),
        (good, Options("sit", file), "give --heads"),
        (good, Options("sit", file, heads=2, classes=10), "is for 5 classes"),
        (good, Options("sit", file, heads=2, overrides=["data.size=16"]), "set data.size=8"),
        (good, Options("sit", wide, heads=2), "latents of 1 channels"),
        (good, Options("dit", learned, heads=2), "predicts no variances"),
        (good, Options("sat", file), "allowed: dit, sit"),
        (saved(tmp_path / "half.pt", half), Options("sit", file, heads=2), "lacks blocks.1.mlp"),
        (
            saved(tmp_path / "net.pt", {"conv.weight": torch.zeros(2)}),
            Options(None, file),
            "no generator that is known",
        ),
        (str(cut), Options("sit", file), "truncated"),
        (str(tmp_path / "none.pt"), Options(), "no such file"),
        (str(tmp_path), Options(), "not diffusers'"),
    ]
    with pytest.raises(ConfigError, match="no export; name a new folder"):
        convert(good, tmp_path, Options("sit", file, heads=2))
    for source, options, message in cases:
        with pytest.raises((CheckpointError, ConfigError), match=message):
            convert(source, out, options)
        assert not out.exists()


@torch.no_grad()
def test_fit_takes_other_grids_but_only_those_that_patches_tile(tmp_path):
    network = awake(FiT(**{**SIZES, "channels": 3}))
    source = saved(tmp_path / "fit.pt", network.state_dict())
    for size in (12, 9):
        file = recipe(tmp_path, FLOW, "fit", data={"name": "fractals", "size": size}, tokenizer={"name": "pixels"})
        if size == 9:
            with pytest.raises(ConfigError, match="grid of 9 x 9"):
                convert(source, tmp_path / "out", Options(None, file, heads=2))
        else:
            convert(source, tmp_path / "wide", Options(None, file, heads=2))
            assert from_pretrained(tmp_path / "wide").tokenizer.spec.grid == (12, 12)


def test_the_recipe_is_that_of_the_published_size_and_needs_its_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = DiT((4, 4), 4, patch=2, width=16, depth=1, heads=2, num_classes=1000)
    with pytest.raises(CheckpointError, match="genlab convert stabilityai/sd-vae-ft-ema -o tokenizers/sd-vae-ft-ema"):
        convert(saved(tmp_path / "s.pt", network.state_dict()), tmp_path / "out", Options("sit", heads=2))


def test_imagenet_classes_have_their_names():
    assert command._class_names(1000)[207] == "golden retriever"
    assert command._class_names(3) == ("0", "1", "2")


@torch.no_grad()
def test_diffusers_folders_go_out_and_come_back(tmp_path, monkeypatch):
    config = KL(**KL_SIZES)
    tokenizer = awake(config.build(16))
    storage.save_tokenizer(tmp_path / "vae", config, tokenizer, {"name": "tiny", "image_size": 16})
    network = awake(DiT(**{**SIZES, "channels": 2}, learn_sigma=True))
    trained = {"name": "trained", "path": str(tmp_path / "vae")}
    file = recipe(tmp_path, DIFFUSION, data={"name": "fractals", "size": 16}, tokenizer=trained)
    source = saved(tmp_path / "dit.pt", network.state_dict())
    convert(source, tmp_path / "export", Options("dit", file, heads=2))
    assert (tmp_path / "export" / "tokenizer" / "config.json").exists()
    to_diffusers(str(tmp_path / "export"), tmp_path / "pipeline")

    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "pipeline" / "transformer")
    assert torch.equal(theirs.proj_out_2.weight, network.final_layer.linear.weight)
    vae = AutoencoderKL.from_pretrained(tmp_path / "pipeline" / "vae")
    x = torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(vae.decode(x * 0.5).sample, tokenizer.decode(x), rtol=1e-4, atol=1e-5)
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline" and index["id2label"]["4"] == "4"

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    back = recipe(tmp_path, DIFFUSION, data={"name": "fractals", "size": 16})
    convert(str(tmp_path / "pipeline"), tmp_path / "back", Options(recipe=back))
    generator = from_pretrained(tmp_path / "back")
    same_output(generator.network, network, channels=2)
    torch.testing.assert_close(generator.tokenizer.decode(x), tokenizer.decode(x))


@torch.no_grad()
def test_a_tokenizer_takes_the_statistics_that_are_published_beside_it(tmp_path):
    config = KL(**KL_SIZES)
    tokenizer = awake(config.build(16))
    storage.save_tokenizer(tmp_path / "vae", config, tokenizer, {"name": "tiny", "image_size": 16})
    to_diffusers(str(tmp_path / "vae"), tmp_path / "diffusers")
    statistics = tmp_path / "stats.pt"
    torch.save({"mean": torch.tensor([0.5, -1.0]).view(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}, statistics)
    convert(
        str(tmp_path / "diffusers"), tmp_path / "out", Options(statistics=str(statistics), overrides=["data.size=16"])
    )
    loaded = storage.load_tokenizer(tmp_path / "out")
    assert loaded.spec.mean == (0.5, -1.0)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(loaded.encode(images), tokenizer.encode(images))


@torch.no_grad()
def test_edm2_shows_the_vae_pixels_of_0_to_1_and_latents_of_its_own_scale(tmp_path):
    config = KL(**{**KL_SIZES, "channels": 4})
    tokenizer = awake(config.build(32))
    storage.save_tokenizer(tmp_path / "vae", config, tokenizer, {"name": "tiny", "image_size": 32})
    to_diffusers(str(tmp_path / "vae"), tmp_path / "diffusers")
    vae = AutoencoderKL.from_pretrained(tmp_path / "diffusers")
    convert(str(tmp_path / "diffusers"), tmp_path / "out", Options(statistics="edm2", overrides=["data.size=32"]))
    ours = storage.load_tokenizer(tmp_path / "out")
    mean, std = (torch.tensor(values).view(4, 1, 1) for values in ((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)))
    x = torch.randn(2, 4, 16, 16) / 2
    torch.testing.assert_close(ours.decode(x), vae.decode(x / 0.5 * std + mean).sample * 2 - 1, rtol=1e-4, atol=1e-4)
    first = vae.encoder.conv_in
    pixels = torch.rand(2, 3, 32, 32)
    inner = (..., slice(1, -1), slice(1, -1))  # the borders see other padding
    torch.testing.assert_close(ours.encoder.conv_in(pixels * 2 - 1)[inner], first(pixels)[inner], rtol=1e-4, atol=1e-5)


def test_the_hub_is_asked_for_what_is_not_here(tmp_path, monkeypatch):
    asked = []

    class Api:
        def list_repo_files(self, repository):
            return ["a.pt", "b.pt"] if repository == "o/two" else ["README.md", "a.safetensors"]

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch.fetch("hub:o/one:sub/a.pt") == tmp_path / "sub/a.pt"
    assert fetch.fetch("o/one") == tmp_path / "a.safetensors"
    assert asked == [("o/one", "sub/a.pt"), ("o/one", "a.safetensors")]
    with pytest.raises(CheckpointError, match="say which file"):
        fetch.fetch("o/two")
    save_file({"x": torch.zeros(1)}, tmp_path / "here.safetensors")
    assert fetch.fetch(str(tmp_path / "here.safetensors")) == tmp_path / "here.safetensors"
