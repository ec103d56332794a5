"""`genlab convert` of ENAT: names, sizes and what weights do not tell."""

import json

import pytest
import torch
import yaml

from genlab.commands.convert import Options, convert
from genlab.convert import enat
from genlab.convert.generators import Hints, recognise
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError
from genlab.networks.enat import ENAT, PRESETS, ENATConfig
from genlab.pretrained import from_pretrained
from genlab.tokenization import storage
from genlab.tokenization.quantizers.vector import LearnedVQ
from genlab.tokenization.vq import VQ
from samplers.noise import spawn

SIZES = {"vocab": 13, "num_classes": 5, "width": 16, "encoder_depth": 1, "decoder_depth": 2, "heads": 2}
TOKENIZER = VQ(
    network="maskgit", unit_pixels=True, mid_attention=False, quant_kernel=0, width=4, multipliers=(1, 2), blocks=1,
    groups=2, channels=4, quantizer=LearnedVQ(vocab=13, legacy=True),
)  # fmt: skip


def awake(network):
    """With random weights everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def published(network):
    """What the official trainer writes."""
    state = enat.save(network) | {"x_embedder.position_ids": torch.arange(16)[None]}
    return {f"module.{key}": value.clone() for key, value in state.items()}


@pytest.fixture
def recipe(tmp_path):
    """A recipe over a tiny MaskGIT VQGAN whose network is that of SIZES."""
    facts = {"name": "tiny", "image_size": 8}
    storage.save_tokenizer(tmp_path / "vq", TOKENIZER, awake(TOKENIZER.build(8)), facts)
    tree = {
        "data": {"name": "fractals", "size": 8},
        "tokenizer": {"name": "trained", "path": str(tmp_path / "vq")},
        "network": {"name": "enat", "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 2},
        "process": {"name": "masked"},
        "training": {"images": 1280},
        "sampling": {"steps": 3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(tree))))
    return tmp_path / "recipe.yaml"


@torch.no_grad()
def test_a_published_file_becomes_an_export(recipe, tmp_path, capsys):
    network = awake(ENAT((4, 4), **SIZES))
    torch.save(published(network), tmp_path / "nnet_ema.pth")
    convert(str(tmp_path / "nnet_ema.pth"), tmp_path / "out", Options("enat", recipe, heads=2))
    assert "enat of no published size" in capsys.readouterr().out
    generator = from_pretrained(tmp_path / "out")
    tokens = torch.randint(13, (2, 16)).masked_fill(torch.arange(16) > 5, 13)
    label = torch.tensor([0, 5])
    assert torch.equal(generator.network(tokens, label), network(tokens, label))
    assert generator.sample(torch.tensor([1, 2]), spawn(0, range(2))).shape == (2, 3, 8, 8)

    other = awake(ENAT((4, 4), **SIZES | {"vocab": 14}))
    torch.save(published(other), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"14 codes, tokenizer trained of .* has 13"):
        convert(str(tmp_path / "other.pth"), tmp_path / "none", Options("enat", recipe, heads=2))


@pytest.mark.parametrize("preset", PRESETS)
def test_published_sizes_are_known_by_their_shapes(preset):
    with torch.device("meta"):
        spec = LatentSpec("codes", 256, (32, 32), 512, vocab=1024)
        found = recognise(enat.save(ENATConfig(preset=preset).build(spec, 1000)), "file")
    assert (found.families, found.preset, found.grid, found.vocab, found.num_classes) == (
        ("enat",), preset, (32, 32), 1024, 1000,
    )  # fmt: skip


def test_the_recipe_is_that_of_the_grid_and_names_its_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab": 5, "num_classes": 1000, "width": 6, "encoder_depth": 22, "decoder_depth": 2, "heads": 1}
    torch.save(enat.save(ENAT((32, 32), **sizes)), tmp_path / "nnet_ema_512.pth")
    monkeypatch.setitem(PRESETS, "ENAT-L", {key: sizes[key] for key in PRESETS["ENAT-L"]})
    with pytest.raises(CheckpointError, match=r"vqgan_jax_strongaug.ckpt -o tokenizers/maskgit-vqgan"):
        convert(str(tmp_path / "nnet_ema_512.pth"), tmp_path / "out", Options())


@pytest.mark.parametrize("origin", ["dit", "lightningdit", "xar", "diffusers"])
def test_another_family_is_refused_before_its_sizes_are_asked_for(tmp_path, origin):
    torch.save(enat.save(ENAT((4, 4), **SIZES)), tmp_path / "nnet.pth")
    with pytest.raises(CheckpointError, match=f"by its weights enat, not {origin}$"):
        convert(str(tmp_path / "nnet.pth"), tmp_path / "out", Options(origin))


def test_what_cannot_be_read_is_named():
    state = enat.save(ENAT((4, 4), **SIZES))
    with pytest.raises(CheckpointError, match="3 blocks is no published size: give --heads, and a --recipe whose"):
        recognise(state, "file", Hints(heads=2))
    with pytest.raises(CheckpointError, match="only square grids"):
        recognise(enat.save(ENAT((2, 4), **SIZES)), "file")
    half = {key: value for key, value in state.items() if not key.startswith("blocks.2.mlp")}
    found = recognise(half, "file", Hints(heads=2, decoder_depth=2))
    with pytest.raises(CheckpointError, match=r"lacks blocks\.2\.mlp"):
        found.network(TOKENIZER.latent_spec(8))
