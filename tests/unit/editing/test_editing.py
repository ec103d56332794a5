"""Edits of an image: what is not chosen stays, whatever the batch; and what `genlab sample --edit` makes of files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.core.errors import GenlabError
from genlab.core.generator import Generator
from genlab.editing import Editor, canvas, edit
from genlab.networks.dit import DiT
from genlab.networks.enat import ENAT
from genlab.networks.flexvar import FlexVAR
from genlab.networks.var import VAR
from genlab.networks.xar import XAR
from genlab.processes.flow import FlowConfig
from genlab.processes.masked import Masked
from genlab.processes.masked_sampling import MaskedSampling
from genlab.processes.next_scale import NextScale
from genlab.processes.next_scale_sampling import NextScaleSampling
from genlab.processes.next_x import NextX
from genlab.processes.next_x_sampling import NextXSampling
from genlab.processes.shortcut import ShortcutConfig
from genlab.sampling import sample_images
from genlab.tokenization.multiscale import FlexibleVQ, MultiscaleVQ
from genlab.tokenization.pixels import Pixels
from genlab.tokenization.quantizers.multiscale import MultiscaleQuantization
from genlab.tokenization.quantizers.vector import LearnedVQ
from genlab.tokenization.vq import VQ
from samplers.noise import spawn

SCALES, VOCAB, SIDE = (1, 2, 4), 13, 8
AUTOENCODER = {"width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2, "scales": SCALES, "channels": 4}


def awake(network):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def generator(name: str) -> Generator:
    torch.manual_seed(1)
    if name in ("xar", "dit", "shortcut"):
        tokenizer = Pixels().build(SIDE).eval()
        if name != "xar":
            network = awake(DiT((SIDE, SIDE), 3, width=16, depth=1, heads=2, num_classes=3))
            process = {"dit": FlowConfig, "shortcut": ShortcutConfig}[name]
            return Generator(tokenizer, network, process().build(), process.Sampling(steps=4))
        sizes = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
        network = XAR((SIDE, SIDE), 3, entity_size=2, patch=2, num_classes=3, **sizes)
        return Generator(tokenizer, awake(network), NextX(), NextXSampling(steps=2, guidance=2.0))
    if name == "enat":
        sizes = {key: AUTOENCODER[key] for key in ("width", "multipliers", "blocks", "groups", "channels")}
        tokenizer = VQ(**sizes, quantizer=LearnedVQ(vocab=VOCAB)).build(SIDE).eval()
        network = ENAT((4, 4), VOCAB, 3, width=16, encoder_depth=1, decoder_depth=1, heads=2)
        return Generator(tokenizer, awake(network), Masked(), MaskedSampling(steps=3, guidance=2.0))
    kind, config = {
        "var": (VAR, MultiscaleVQ(**AUTOENCODER, quantizer=MultiscaleQuantization(vocab=VOCAB))),
        "flexvar": (FlexVAR, FlexibleVQ(**AUTOENCODER, code_channels=4, quantizer=LearnedVQ(vocab=VOCAB, unit=True))),
    }[name]
    tokenizer = config.build(SIDE).eval()
    network = awake(kind(SCALES, channels=4, vocab=VOCAB, num_classes=3, width=32, depth=1, heads=2))
    return Generator(tokenizer, network, NextScale().over(tokenizer), NextScaleSampling(guidance=2.0))


LABEL = torch.tensor([0, 2, 3])  # the last one: no class


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def right() -> torch.Tensor:
    """The right half, made anew."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:, SIDE // 2 :] = True
    return mask


def watched(made, monkeypatch) -> list[torch.Tensor]:
    """The tokens that the generator's tokenizer is given to decode."""
    seen, decode = [], made.tokenizer.decode
    monkeypatch.setattr(made.tokenizer, "decode", lambda tokens, *rest: seen.append(tokens) or decode(tokens, *rest))
    return seen


def finest(codes):
    """The codes of the latent grid, [B,4,4]."""
    return codes.flatten(1)[:, -16:].view(-1, 4, 4)


@pytest.mark.parametrize("name", ["var", "flexvar", "enat"])
def test_codes_outside_the_mask_stay(name, image, right, monkeypatch):
    made = generator(name)
    own = finest(made.tokenizer.encode(image[None]))[0]
    seen = watched(made, monkeypatch)
    images = edit(made, image, right, LABEL, spawn(0, range(3)))
    last = finest(seen[-1])
    assert images.shape == (3, 3, SIDE, SIDE) and images.abs().max() <= 1
    assert torch.equal(last[:, :, :2], own[:, :2].expand(3, -1, -1))
    assert not torch.equal(last[:, :, 2:], own[:, 2:].expand(3, -1, -1))


@pytest.mark.parametrize("name", ["var", "enat"])
def test_one_touched_pixel_makes_its_position_anew(name, image, monkeypatch):
    made = generator(name)
    own = finest(made.tokenizer.encode(image[None]))
    seen = watched(made, monkeypatch)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[3, 5] = True
    for seed in range(8):
        edit(made, image, mask, LABEL, spawn(seed, range(3)))
    changed = torch.stack([finest(tokens) != own for tokens in seen]).flatten(0, 1).any(0)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["var", "flexvar"])
def test_coarser_scales_stay(name, image, monkeypatch):
    made = generator(name)
    own = made.tokenizer.encode(image[None])
    seen = watched(made, monkeypatch)
    edit(made, image, None, LABEL, spawn(0, range(3)), from_scale=2)
    assert torch.equal(seen[-1][:, :5], own[:, :5].expand(3, -1))
    assert not torch.equal(seen[-1][:, 5:], own[:, 5:].expand(3, -1))


def test_pixels_that_xar_does_not_make_anew_stay(image, right):
    made = generator("xar")
    images = edit(made, image, right, LABEL, spawn(0, range(3)))
    torch.testing.assert_close(images[..., :4], image[None, ..., :4].expand(3, -1, -1, -1))
    assert (images - image)[..., 4:].abs().amax(dim=(1, 2, 3)).min() > 0.01
    rest = edit(made, image, None, LABEL, spawn(0, range(3)), from_scale=3)  # the fourth cell
    torch.testing.assert_close(rest[:, :, :4], image[None, :, :4].expand(3, -1, -1, -1))
    assert not torch.isclose(rest[:, :, 4:, 4:], image[:, 4:, 4:]).all()


def test_a_flow_keeps_what_is_outside_the_mask(image, right):
    images = edit(generator("dit"), image, right, LABEL, spawn(0, range(3)))
    torch.testing.assert_close(images[..., :4], image[None, ..., :4].expand(3, -1, -1, -1))
    assert (images - image)[..., 4:].abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_a_variation_begins_from_the_image(image):
    made = generator("dit")
    slight, strong, whole = (
        edit(made, image, None, LABEL, spawn(0, range(3)), strength=strength) for strength in (0.05, 0.6, 1.0)
    )
    assert (slight - image).abs().mean() < (strong - image).abs().mean()
    assert torch.equal(whole, made.sample(LABEL, spawn(0, range(3))).clamp(-1, 1))


@pytest.mark.parametrize("name", ["enat", "dit"])
def test_masking_everything_is_sampling(name, image, right):
    made, rng = generator(name), spawn(0, range(3))
    assert torch.equal(edit(made, image, right | True, LABEL, rng), made.sample(LABEL, spawn(0, range(3))).clamp(-1, 1))


@pytest.mark.parametrize("name", ["var", "flexvar", "xar", "enat", "dit"])
def test_an_edit_depends_on_seed_index_and_class_alone(name, image, right):
    made = generator(name)
    editor = Editor(**vars(made), image=image, mask=right)
    together = torch.cat([part.images for part in sample_images(editor, [0, 2, 3], 5, range(3), batch=3)])
    single = torch.cat([part.images for part in sample_images(editor, [0, 2, 3], 5, range(3), batch=1)])
    assert (together.int() - single.int()).abs().max() <= 1
    other = torch.cat([part.images for part in sample_images(editor, [0, 2, 3], 6, range(3), batch=3)])
    assert not torch.equal(other, together)


def test_an_oblong_canvas_is_edited_by_the_schedule_that_is_sampled(image):
    made, settings = generator("flexvar"), NextScaleSampling(scales=((1, 1), (2, 4), (4, 8)))
    assert canvas(made, settings) == (SIDE, 2 * SIDE)
    wide, mask = torch.cat([image, image], dim=2), torch.ones(SIDE, 2 * SIDE, dtype=torch.bool)
    mask[:, :SIDE] = False
    assert edit(made, wide, mask, LABEL, spawn(0, range(3)), settings).shape == (3, 3, SIDE, 2 * SIDE)


def test_what_cannot_be_edited_is_named(image, right):
    rng = spawn(0, range(3))
    cases = [
        ("shortcut", image, right, None, "Shortcut cannot edit images"),
        ("dit", image, None, None, "give a mask, or a strength"),
        ("dit", image, right, 1, "no scales"),
        ("var", image[:, :4], right, None, "4 x 8 pixels, this generator makes 8 x 8"),
        ("var", image, right[:4], None, "the mask has 4 x 8 pixels"),
        ("xar", image, right & False, None, "the mask is empty"),
        ("enat", image, right & False, None, "the mask is empty"),
        ("enat", image, right, 1, "no scales"),
        ("enat", image, None, None, "give a mask"),
        ("var", image, None, None, "give a mask, or the scale"),
        ("var", image, None, 3, "scales 0..2"),
        ("var", image, right, -1, "scales 0..2"),
        ("xar", image, None, 4, "entities 0..3"),
        ("xar", image, right, 1, "not both"),
    ]
    with pytest.raises(GenlabError, match="label 4 is out of range"):
        edit(generator("var"), image, right, LABEL + 1, rng)
    for name, strength, message in [
        ("dit", 0, "above 0"),
        ("dit", float("nan"), "above 0"),
        ("var", 0.5, "noised image"),
    ]:
        with pytest.raises(GenlabError, match=message):
            edit(generator(name), image, right, LABEL, rng, strength=strength)
    for name, picture, mask, scale, message in cases:
        with pytest.raises(GenlabError, match=message):
            edit(generator(name), picture, mask, LABEL, rng, from_scale=scale)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`genlab sample` of a tiny generator, in a folder with files to edit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("genlab.commands.sample.from_pretrained", lambda run, *_: generator(run))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels[:4, :4]).save("small.png")
    white = np.zeros((12, 20), np.uint8)
    white[:, 10:] = 255
    Image.fromarray(white).save("mask.png")
    Image.fromarray(white * 0).save("nothing.png")
    return lambda *words: cli.app(args=["sample", *words, "--count", "2"], standalone_mode=False)


def test_sample_edits_files(command, tmp_path):
    words = ["--edit", "photo.png", "--mask", "mask.png", "--classes", "1,none", "--seed", "3"]
    command("xar", *words, "--out", "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "000000-0001.png", "000001-0003.png", "grid.png", "plan.json",
    ]  # fmt: skip
    first, second = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("000000-0001.png", "000001-0003.png"))
    assert (first[:, :4] == second[:, :4]).all() and (first[:, 4:] != second[:, 4:]).any()
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["edit"]["image"] == "photo.png" and plan["seed"] == 3 and plan["sampling"]["steps"] == 2
    Image.new("RGB", (20, 12)).save("photo.png")
    with pytest.raises(GenlabError, match="other settings"):
        command("xar", *words, "--out", "out")


def test_sample_varies_an_image(command, tmp_path):
    command("dit", "--edit", "photo.png", "--strength", "0.1", "--out", "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["edit"]["strength"] == 0.1 and len(list((tmp_path / "out").glob("0*.png"))) == 2


def test_sample_paints_around_an_image_on_the_canvas(command, tmp_path):
    command("xar", "--edit", "small.png", "--place", "4,0", "--out", "out")
    own, made = np.asarray(Image.open("small.png")), np.asarray(Image.open(tmp_path / "out" / "000000-0000.png"))
    assert (made[:4, 4:] == own).all() and made.shape == (8, 8, 3)


def test_sample_names_what_does_not_fit(command, tmp_path):
    cases = [
        (["--edit", "photo.png", "--mask", "small.png"], "small.png: has 4 x 4 pixels, but photo.png has 20 x 12"),
        (["--edit", "photo.png", "--mask", "nothing.png"], "mask is empty"),
        (["--edit", "none.png", "--from-scale", "1"], "none.png: cannot be read"),
        (["--edit", "photo.png", "--from-scale", "9"], "scales 0..2"),
        (["--edit", "photo.png", "--place", "0,0"], "do not fit on the canvas of 8 x 8"),
        (["--edit", "small.png", "--place", "left"], "such as 64,0"),
        (["--edit", "photo.png", "--mask", "mask.png", "scales=[[1,1],[4,8]]"], "--place X,Y"),
        (["--mask", "mask.png"], "name it with --edit"),
    ]
    for words, message in cases:
        with pytest.raises(GenlabError, match=message):
            command("flexvar", *words, "--out", "out")
        assert not (tmp_path / "out").exists()
