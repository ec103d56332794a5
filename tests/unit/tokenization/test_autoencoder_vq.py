"""Tokenizers with a codebook: what goes in and out, gradients, pixel ranges, published sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from genlab.core.errors import ConfigError
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.quantizers.vector import LearnedVQ
from genlab.tokenization.vq import PRESETS, VQ
from samplers.noise import spawn

SIZES = {"width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1, "channels": 6}
CODES = LearnedVQ(vocab=16)
CONFIGS = [
    VQ(**SIZES, quantizer=CODES),
    VQ(**SIZES, quantizer=LearnedVQ(vocab=16, unit=True), code_channels=3, quant_kernel=3, attention=(1,)),
    VQ(**SIZES, quantizer=CODES, network="maskgit", mid_attention=False, quant_kernel=0, unit_pixels=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "unit", "maskgit"])
def test_images_to_codes_and_back_and_every_parameter_learns(config):
    tokenizer = config.build(16)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, *tokenizer.spec.grid)
    assert codes.dtype == torch.int64
    assert int(codes.max()) < tokenizer.spec.vocab
    assert tokenizer.embed(codes).shape[1:] == tokenizer.spec.shape
    result = tokenizer(images, spawn(0, [0, 1]))
    assert torch.equal(result.codes, codes)
    assert result.loss.shape == (2,)
    decoded = tokenizer.decode(tokenizer.prepare(codes, spawn(0, [0, 1])))
    torch.testing.assert_close(decoded, result.images, atol=1e-5, rtol=1e-4)
    (result.loss.mean() + result.images.square().mean()).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []


def test_residual_codes_and_blocks():
    config = VQ(**SIZES, quantizer=ResidualVQ(vocab=16, depth=3, block=(2, 2)))
    spec = config.latent_spec(16)
    assert (spec.kind, spec.grid, spec.depth) == ("residual", (4, 4), 3)
    tokenizer = config.build(16).eval()
    codes = tokenizer.encode(torch.rand(2, 3, 16, 16))
    assert codes.shape == (2, 4, 4, 3)
    assert tokenizer.decode(codes).shape == (2, 3, 16, 16)
    with pytest.raises(ConfigError, match="block"):
        config.latent_spec(18)


def test_unit_pixels_only_change_what_the_network_sees():
    inside, outside = (VQ(**SIZES, quantizer=CODES, unit_pixels=unit).build(16) for unit in (True, False))
    outside.load_state_dict(inside.state_dict())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(inside.features(images), outside.features(images * 0.5 + 0.5))
    codes = inside.encode(images)
    torch.testing.assert_close(inside.decode(codes), outside.decode(codes) * 2 - 1)


def test_a_config_survives_json():
    for config in (*CONFIGS, *PRESETS.values()):
        assert TypeAdapter(VQ).validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"quant_kernel": 0, "code_channels": 3}, "code_channels=3"), ({"network": "maskgit"}, "no attention")],
)
def test_parts_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        VQ(**SIZES, quantizer=CODES, **fields)


def test_images_that_the_stride_does_not_divide_are_refused():
    with pytest.raises(ConfigError, match="stride 2"):
        CONFIGS[0].latent_spec(15)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("taming-f16-1024", 72.14),
        ("taming-f16-16384", 76.07),
        ("ldm-vq-f8", 67.72),
        ("llamagen-vq-16", 71.88),
        ("llamagen-vq-8", 70.11),
        ("maskgit", 54.52),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, millions):
    with torch.device("meta"):
        tokenizer = PRESETS[name].build(256)
    assert sum(p.numel() for p in tokenizer.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
