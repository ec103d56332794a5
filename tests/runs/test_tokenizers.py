"""Tokenizers as people use them: trained, scored, cached, and under a generator."""

import json
import signal

import pytest
import torch
from runs_support import (
    ACCELERATE,
    assert_same_weights,
    checkpoints,
    command,
    genlab,
    interrupted,
    python,
    tensors,
    two,
)

from genlab.core.contracts import to_uint8
from genlab.core.errors import CheckpointError
from genlab.data.digits import Digits
from genlab.evaluation.classifier import DigitsClassifier
from genlab.pretrained import from_pretrained
from genlab.tokenization.storage import load_tokenizer
from samplers.noise import spawn

SMALL = """
  width: 16
  multipliers: [1, 2]
  blocks: 1
  groups: 4
  mid_attention: false
"""
TRAINING = """
training:
  images: {images}
  batch: 32
  lr: 4.0e-3
  schedule: {{warmup: 640, decay: cosine}}
  clip_norm: 1.0
  ema: [0.95]
  ema_warmup: true
  checkpoint_every: {every}
  log_every: 640
  preview_every: 3200
  preview_count: 16
"""
KL = f"""
data: {{name: digits, held_out: 0.2}}
tokenizer:
  name: kl{SMALL}  channels: 4
reconstruction:
  l1: 1
  perceptual: null
  adversarial:
    discriminator: {{name: patchgan, width: 8, layers: 1}}
    start: 128
    lecam: 0.1
    augment: [translation]
{TRAINING.format(images=384, every=64)}"""
VQ = f"""
data: {{name: digits, held_out: 0.2}}
tokenizer:
  name: vq{SMALL}  channels: 32
  code_channels: 8
  quantizer: {{name: ema, vocab: 32, averaging: {{decay: 0.95, revive_below: 0.3, kmeans: 5}}}}
reconstruction: {{l1: 0, l2: 1, perceptual: null}}
{TRAINING.format(images=19200, every=9600)}"""
GENERATOR = """
data: {{name: digits, held_out: 0.2}}
tokenizer: {{name: trained, path: {path}, recipe: {recipe}}}
network: {{name: dit, depth: 1, width: 32, heads: 2, patch: 1}}
process: {{name: flow}}
training: {{images: 320, batch: 32, lr: 1.0e-3, ema: [0.9], preview_every: 320, preview_count: 4}}
sampling: {{sampler: euler, steps: 4}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "kl.yaml").write_text(KL)
    (folder / "vq.yaml").write_text(VQ)
    recipe = GENERATOR.format(path=folder / "runs/kl", recipe=folder / "kl.yaml")
    (folder / "dit.yaml").write_text(recipe)
    return folder


@pytest.fixture(scope="module")
def kl(folder):
    command([*ACCELERATE, "genlab/train.py", folder / "kl.yaml", "name=kl", "--runs", folder / "runs"])
    return folder / "runs/kl"


@pytest.fixture(scope="module")
def vq(folder):
    command([*ACCELERATE, "genlab/train.py", folder / "vq.yaml", "name=vq", "--runs", folder / "runs"])
    return folder / "runs/vq"


def test_a_vq_learns_digits_and_uses_its_codes(vq):
    lines = [json.loads(line) for line in (vq / "log.jsonl").read_text().splitlines()]
    psnr = [line["psnr"] for line in lines if "psnr" in line]
    assert psnr[-1] > 18 and psnr[-1] > psnr[0]
    assert [line for line in lines if "usage" in line][-1]["usage"] > 0.9
    tokenizer = load_tokenizer(vq)
    real, held_out = Digits(held_out=0.2).build(), Digits(held_out=0.2).build("test")
    images, labels = held_out.fetch(range(len(held_out)))
    codes = tokenizer.encode(images.float() / 127.5 - 1)
    assert codes.shape == (len(images), 4, 4) and codes.max() < 32
    judge = DigitsClassifier().fit(*real.fetch(range(len(real))))
    accuracy, _ = judge.class_accuracy(to_uint8(tokenizer.decode(codes)), labels)
    assert accuracy > 0.8  # the recipes, trained longer, reach more: benchmarks/tokenizer_recipes.py


def test_a_tokenizer_is_scored_with_a_report(vq, tmp_path):
    assert genlab("evaluate", vq, "--extractor", "efflite0", "--samples", "32", "--out", tmp_path / "report") == 0
    scores = json.loads((tmp_path / "report/report.json").read_text())["scores"]
    names = {score["name"] for score in scores} if isinstance(scores, list) else set(scores)
    assert {"psnr", "codebook_usage", "perplexity"} <= names
    assert (tmp_path / "report/report.html").stat().st_size > 1000


def test_killed_in_the_midst_of_two_players_it_continues_bit_for_bit(kl, folder, tmp_path):
    words = ["genlab/train.py", folder / "kl.yaml", "name=kl", "--runs", tmp_path]
    interrupted(90, signal.SIGKILL, tmp_path / "kl/checkpoints", *words, expect=-signal.SIGKILL)
    assert 0 < int(checkpoints(tmp_path / "kl")[-1].name) < 384
    python(*words)
    assert_same_weights(tmp_path / "kl", kl)
    assert any(name.startswith("discriminator/") for name in tensors(checkpoints(kl)[-1]))


def test_two_processes_train_a_codebook_as_one_does(folder, tmp_path):
    change = ["training.images=640", "training.ema=[]", "tokenizer.quantizer.averaging.kmeans=0"]
    change += ["tokenizer.quantizer.averaging.revive_below=0"]
    one = ["genlab/train.py", folder / "vq.yaml", *change, "--runs", tmp_path]
    python(*one, "name=one")
    two(*one, "name=two")
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=2e-5)


def test_a_generator_learns_on_its_latents_and_takes_the_tokenizer_along(kl, folder, tmp_path):
    assert genlab("train", folder / "dit.yaml", "name=dit", "--runs", tmp_path) == 0
    moved = (tmp_path / "dit/export").rename(tmp_path / "elsewhere")
    assert (moved / "tokenizer/tokenizer.safetensors").is_file()
    generator = from_pretrained(moved)
    assert generator.tokenizer.spec.fingerprint == load_tokenizer(kl).spec.fingerprint
    assert len(generator.tokenizer.spec.std) == 4 and generator.tokenizer.spec.std != (1.0,) * 4
    images = generator.sample(torch.tensor([3, 7]), spawn(0, [0, 1]))
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


def test_training_from_a_cache_is_training_from_images(kl, folder, tmp_path):
    assert genlab("cache", folder / "dit.yaml", "-o", tmp_path / "cache") == 0
    assert genlab("train", folder / "dit.yaml", "name=live", "--runs", tmp_path) == 0
    cached = ["data.name=latents", f"data.path={tmp_path / 'cache'}"]
    recipe = (folder / "dit.yaml").read_text().replace("{name: digits, held_out: 0.2}", "{}")
    (tmp_path / "cached.yaml").write_text(recipe)
    assert genlab("train", tmp_path / "cached.yaml", *cached, "name=cached", "--runs", tmp_path) == 0
    assert_same_weights(tmp_path / "live", tmp_path / "cached", tolerance=1e-4)


def test_a_cache_of_another_tokenizer_is_refused(kl, vq, folder, tmp_path, capsys):
    assert genlab("cache", folder / "dit.yaml", "-o", tmp_path / "cache") == 0
    recipe = (folder / "dit.yaml").read_text().replace("{name: digits, held_out: 0.2}", "{}")
    (tmp_path / "other.yaml").write_text(recipe)
    python("genlab/train.py", folder / "kl.yaml", "name=kl2", "training.images=64", "seed=1", "--runs", tmp_path)
    other = ["data.name=latents", f"data.path={tmp_path / 'cache'}", f"tokenizer.path={tmp_path / 'kl2'}"]
    capsys.readouterr()
    assert genlab("train", tmp_path / "other.yaml", *other, "name=refused", "--runs", tmp_path) == 2
    said = capsys.readouterr().err
    for tokenizer in (kl, tmp_path / "kl2"):
        assert load_tokenizer(tokenizer).spec.fingerprint in said
    assert not (tmp_path / "refused").exists()


def test_weights_that_were_changed_are_refused(vq, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "tokenizer.safetensors"
    (tmp_path / "config.json").write_bytes((vq / "export/config.json").read_bytes())
    state = load_file(vq / "export/tokenizer.safetensors")
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, file)
    with pytest.raises(CheckpointError, match="were changed"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_there_says_how_to_make_it(folder, tmp_path, capsys):
    capsys.readouterr()
    assert genlab("train", folder / "dit.yaml", "tokenizer.path=runs/nowhere", "--runs", tmp_path) == 2
    said = capsys.readouterr().err
    assert "runs/nowhere" in said and f"genlab/train.py {folder / 'kl.yaml'}" in said
    assert len(said.strip().splitlines()) <= 2
