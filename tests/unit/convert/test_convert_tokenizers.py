"""Published tokenizer files: sizes read from weights, other objects left out, damage and strangers refused."""

from __future__ import annotations

import collections
import json
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from genlab.convert.autoencoder_keys import to_llamagen, to_taming
from genlab.convert.autoencoders import convert_state, load_tokenizer, save_diffusers
from genlab.convert.vq_tokenizers import to_published
from genlab.core.errors import CheckpointError
from genlab.tokenization.deep_compression import DeepCompression
from genlab.tokenization.kl import KL, PRESETS
from genlab.tokenization.quantizers.gumbel import GumbelVQ
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.quantizers.vector import LearnedVQ
from genlab.tokenization.vq import VQ
from samplers.noise import spawn

SIZES = {"width": 32, "multipliers": (1, 2), "blocks": 1, "channels": 3}
KLS = [
    KL(**SIZES),
    KL(**SIZES, attention=(0,), decoder_attention=(1,), mid_attention=False),
    KL(**{**SIZES, "multipliers": (2, 1, 1)}, attention=(1, 2), quant_kernel=3),
]


def _weights(config):
    torch.manual_seed(0)
    return config.build(16 * config.stride).state_dict()


def _assert_same(config, state, expected_config, expected):
    assert config == expected_config
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("config", KLS, ids=range(len(KLS)))
@pytest.mark.parametrize("published", [to_taming, to_llamagen, dict], ids=["taming", "llamagen", "diffusers"])
def test_sizes_are_read_from_the_weights(config, published, tmp_path):
    state = _weights(config)
    extra = {"loss.discriminator.main.0.weight": torch.ones(1), "model_ema.decay": torch.ones(())}
    torch.save({"state_dict": {**published(state), **extra}}, tmp_path / "model.ckpt")
    _assert_same(*load_tokenizer(tmp_path / "model.ckpt"), config, state)


def test_the_fused_projection_of_var_is_split(tmp_path):
    config = KLS[0]
    state = _weights(config)
    theirs = to_taming(state)
    for side in ("encoder", "decoder"):
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"{side}.mid.attn_1.{part}.{kind}") for part in "qkv"]
            theirs[f"{side}.mid.attn_1.qkv.{kind}"] = torch.cat(parts)
    save_file(theirs, tmp_path / "v.safetensors")
    _assert_same(*load_tokenizer(tmp_path / "v.safetensors"), config, state)


def test_averaged_weights_come_first_and_wrappers_are_taken_off(tmp_path):
    state = _weights(KLS[0])
    good = {f"module.{key}": value for key, value in to_taming(state).items()}
    torch.save({"model": {"encoder.conv_in.weight": torch.zeros(1)}, "ema": good}, tmp_path / "a.pt")
    _assert_same(*load_tokenizer(tmp_path / "a.pt"), KLS[0], state)
    whole = {f"first_stage_model.{key}": value for key, value in to_taming(state).items()}
    torch.save({"state_dict": {**whole, "model.diffusion_model.out.0.weight": torch.ones(2)}}, tmp_path / "sd.ckpt")
    _assert_same(*load_tokenizer(tmp_path / "sd.ckpt"), KLS[0], state)


def test_foreign_objects_are_neither_imported_nor_run(tmp_path):
    module = types.ModuleType("vanished_framework")

    class Callback:
        def __init__(self):
            self.best = 3

    class Options(dict):
        pass

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trap"), "w"))

    for found in (Callback, Options):
        found.__module__, found.__qualname__ = module.__name__, found.__name__
        setattr(module, found.__name__, found)
    state = _weights(KLS[0])
    content = {
        "state_dict": collections.OrderedDict(to_taming(state)),
        "callbacks": {Callback: {"best": Callback()}},
        "hyper_parameters": Options(lr=1.0, layers=[1, 2]),
        "trap": Trap(),
        "counts": collections.defaultdict(list, a=[1]),
    }
    sys.modules[module.__name__] = module
    try:
        for name, zipped in (("new.ckpt", True), ("old.ckpt", False)):
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules[module.__name__]
    for name in ("new.ckpt", "old.ckpt"):
        _assert_same(*load_tokenizer(tmp_path / name), KLS[0], state)
    assert not (tmp_path / "trap").exists()


def _truncated(path, state):
    torch.save(to_taming(state), path)
    path.write_bytes(path.read_bytes()[:-2000])


def _incomplete(path, state):
    torch.save({k: v for k, v in to_taming(state).items() if k != "decoder.mid.block_1.conv1.weight"}, path)


def _reshaped(path, state):
    torch.save({**to_taming(state), "decoder.mid.block_1.conv1.weight": torch.ones(64, 64, 1, 1)}, path)


def _classifier(path, state):
    torch.save({"conv1.weight": torch.ones(3), "fc.bias": torch.ones(2)}, path)


def _encoder(path, state):
    torch.save({k: v for k, v in to_taming(state).items() if k.startswith("encoder.")}, path)


def _a_list(path, state):
    torch.save([torch.ones(2)], path)


def _text(path, state):
    path.write_text("<html>not found</html>")


def _hostile(path, state):
    path.write_bytes(pickle.dumps({"state_dict": eval}, protocol=2))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncated, "truncated"),
        (_incomplete, "decoder.mid_block.resnets.0.conv1.weight"),
        (_reshaped, "decoder.mid_block.resnets.0.conv1.weight has shape"),
        (_classifier, "known: "),
        (_encoder, "not a tokenizer that is known"),
        (_a_list, "a list"),
        (_text, "no checkpoint"),
        (_hostile, "no checkpoint|holds no weights"),
        (lambda path, state: None, "cannot be read"),
    ],
)
def test_what_is_no_tokenizer_is_one_clear_error(damage, words, tmp_path):
    path = tmp_path / "bad.ckpt"
    damage(path, _weights(KLS[0]))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tokenizer(path)
    assert "bad.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


VQS = [
    ("vqgan", VQ(**SIZES, quantizer=LearnedVQ(vocab=20, legacy=True))),
    ("vqgan", VQ(**SIZES, attention=(1,), code_channels=4, quantizer=LearnedVQ(vocab=20, legacy=True))),
    ("llamagen", VQ(**SIZES, attention=(1,), code_channels=4, quantizer=LearnedVQ(vocab=20, unit=True))),
    (
        "maskgit",
        VQ(
            **SIZES,
            network="maskgit",
            unit_pixels=True,
            mid_attention=False,
            quant_kernel=0,
            quantizer=LearnedVQ(vocab=20, legacy=True),
        ),
    ),
]


@pytest.mark.parametrize(("family", "config"), VQS, ids=[family for family, _ in VQS])
def test_a_codebook_and_its_family_are_read_from_the_weights(family, config, tmp_path):
    state = _weights(config)
    published = {**to_published(state, family), "quantize.codebook_used": torch.zeros(65536)}
    torch.save({"ema": {}, "model": published}, tmp_path / "vq.pt")
    _assert_same(*load_tokenizer(tmp_path / "vq.pt"), config, state)


def test_the_gumbel_codebook(tmp_path):
    config = VQ(**SIZES, quantizer=GumbelVQ(vocab=20))
    state = _weights(config)
    published = to_published({name: value for name, value in state.items() if name != "quantizer.updates"}, "gumbel")
    assert published["quantize.proj.weight"].shape == (20, 3, 1, 1)
    save_file({key: value.contiguous() for key, value in published.items()}, tmp_path / "g.safetensors")
    loaded, found = load_tokenizer(tmp_path / "g.safetensors")
    assert found.pop("quantizer.updates") == config.quantizer.steps  # sampling is cold
    state.pop("quantizer.updates")
    _assert_same(loaded, found, config, state)


@pytest.mark.parametrize("shared", [True, False])
def test_the_codebooks_of_residual_quantisation_lose_their_padding(shared, tmp_path):
    config = VQ(**SIZES, quantizer=ResidualVQ(vocab=20, depth=3, shared=shared))
    state = _weights(config)
    published = to_taming({name: value for name, value in state.items() if not name.startswith("quantizer.")})
    for depth in range(3):
        book = f"quantizer.books.{0 if shared else depth}"
        rows = torch.cat([state[f"{book}.weight"], torch.zeros(1, 3)])
        sums, counts = state[f"{book}.sums"], state[f"{book}.counts"]
        theirs = {"weight": rows, "embed_ema": sums, "cluster_size_ema": counts}
        published |= {f"quantizer.codebooks.{depth}.{name}": value for name, value in theirs.items()}
    torch.save({"state_dict": published}, tmp_path / "rq.pt")
    _assert_same(*load_tokenizer(tmp_path / "rq.pt"), config, state)


@pytest.mark.parametrize("name", ["sd-vae", "kl-16", "ldm-kl-f16"])
def test_published_networks_are_known_with_their_scale(name):
    with torch.device("meta"):
        state = to_taming(PRESETS[name].build(256).state_dict())
    assert convert_state(state, "file")[0] == PRESETS[name]


@pytest.mark.parametrize(
    "options",
    [
        {"std": 1 / 0.18215},
        {"std": 2.0, "mean": 0.25, "groups": 16, "quant_kernel": 0},
        {"std": (1.0, 2.0, 3.0), "mean": (0.5, 0.0, -0.5), "attention": (1,), "decoder_attention": ()},
    ],
)
def test_a_diffusers_folder_there_and_back(options, tmp_path):
    from diffusers import AutoencoderKL

    config = KL(**SIZES, **options)
    tokenizer = config.build(16).eval()
    save_diffusers(config, tokenizer.state_dict(), tmp_path)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        theirs = AutoencoderKL.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs.encode(images).latent_dist.parameters, tokenizer.encode(images))
        loaded, state = load_tokenizer(tmp_path)
        again = loaded.build(16).eval()
        again.load_state_dict(state)
        tokens = again.prepare(again.encode(images), spawn(0, [0]))
        torch.testing.assert_close(tokens, tokenizer.prepare(tokenizer.encode(images), spawn(0, [0])))
        torch.testing.assert_close(again.decode(tokens), tokenizer.decode(tokens))
    assert loaded.mean == pytest.approx(config.mean)
    assert loaded.std == pytest.approx(config.std)


def test_the_old_names_of_attention_in_diffusers_folders(tmp_path):
    config = KL(**SIZES)
    save_diffusers(config, _weights(config), tmp_path)
    state = _weights(config)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        renamed[key] = value
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    _assert_same(*load_tokenizer(tmp_path), config, state)


def test_a_deep_compression_folder(tmp_path):
    from diffusers import AutoencoderDC

    sizes = {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_out_channels": (8, 16),
        "decoder_block_out_channels": (8, 16),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    }
    theirs = AutoencoderDC(**sizes, scaling_factor=0.5)
    theirs.save_pretrained(tmp_path)
    config, state = load_tokenizer(tmp_path)
    kinds = ("ResBlock", "ResBlock")
    assert config == DeepCompression(**sizes, encoder_block_types=kinds, decoder_block_types=kinds, std=2.0)
    tokenizer = config.build(16).eval()
    tokenizer.load_state_dict(state)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.encode(images), theirs.encode(images).latent)


def test_a_folder_of_diffusers_vq_model(tmp_path):
    from diffusers import VQModel

    theirs = VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=8,
        latent_channels=3,
        vq_embed_dim=5,
        num_vq_embeddings=20,
    )
    theirs.save_pretrained(tmp_path)
    config, state = load_tokenizer(tmp_path)
    assert (config.groups, config.attention, config.code_channels) == (8, (1,), 5)
    tokenizer = config.build(16).eval()
    tokenizer.load_state_dict(state)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(images).sample
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), expected, atol=1e-5, rtol=1e-4)


def test_another_class_of_diffusers_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    save_file({"a": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        load_tokenizer(tmp_path)
