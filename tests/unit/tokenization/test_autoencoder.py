"""The convolutional autoencoders: sizes, posterior, standardisation, precision, what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.distributions import Normal, kl_divergence

from genlab.core.errors import ConfigError
from genlab.tokenization.deep_compression import DeepCompression
from genlab.tokenization.kl import KL, PRESETS, divergence, negative_log_likelihood, posterior
from samplers.noise import spawn

SMALL = {"width": 8, "groups": 4, "blocks": 1, "channels": 4}


@st.composite
def sizes(draw):
    multipliers = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    levels = st.sets(st.integers(0, len(multipliers) - 1)).map(lambda found: tuple(sorted(found)))
    return {
        "width": 8,
        "groups": 4,
        "multipliers": multipliers,
        "blocks": draw(st.integers(1, 2)),
        "attention": draw(levels),
        "decoder_attention": draw(st.none() | levels),
        "mid_attention": draw(st.booleans()),
        "channels": draw(st.integers(1, 3)),
    }


@settings(max_examples=12, deadline=None)
@given(sizes())
def test_any_sizes_give_latents_and_images_of_the_promised_shape(fields):
    config = KL(**fields)
    size = 4 * config.stride
    tokenizer = config.build(size)
    images = torch.rand(2, 3, size, size) * 2 - 1
    moments = tokenizer.encode(images)
    tokens = tokenizer.prepare(moments, spawn(0, [0, 1]))
    assert tokens.shape[1:] == tokenizer.spec.shape
    assert moments.shape[1] == 2 * config.channels
    assert tokenizer.decode(tokens).shape == images.shape


def test_every_parameter_learns_and_the_divergence_is_the_weighted_one():
    tokenizer = KL(**SMALL, multipliers=(2, 1), attention=(1,), kl_weight=0.5).build(16)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    result = tokenizer(images, spawn(0, [0, 1]))
    torch.testing.assert_close(result.loss, 0.5 * result.terms["kl"] / (3 * 16 * 16))
    (result.loss.mean() + result.images.square().mean()).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []
    assert tokenizer.last_layer.shape == (3, 16, 3, 3)


def test_the_posterior_is_the_clamped_gaussian():
    moments = torch.randn(3, 8, 2, 2) * 2
    moments[0, 4], moments[1, 5] = 50.0, -80.0
    mean, log_variance = posterior(moments)
    assert log_variance.max() == 20
    assert log_variance.min() == -30
    gaussian = Normal(mean.double(), (0.5 * log_variance.double()).exp())
    at = torch.randn(3, 4, 2, 2).double()
    expected = kl_divergence(gaussian, Normal(torch.zeros(()).double(), 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence(moments.double()), expected)
    torch.testing.assert_close(negative_log_likelihood(moments.double(), at), -gaussian.log_prob(at).sum(dim=(1, 2, 3)))


def test_latents_are_standardised_and_decoding_undoes_it():
    fields = {**SMALL, "multipliers": (1, 1)}
    plain = KL(**fields, sample=False).build(8)
    scaled = KL(**fields, sample=False, mean=(1.0, -2.0, 0.0, 3.0), std=(2.0, 1.0, 0.5, 4.0)).build(8)
    scaled.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 8, 8)
    raw = plain.prepare(plain.encode(images), spawn(0, [0, 1]))
    tokens = scaled.prepare(scaled.encode(images), spawn(0, [0, 1]))
    torch.testing.assert_close(tokens[:, 1], raw[:, 1] + 2.0)
    torch.testing.assert_close(tokens[:, 2], raw[:, 2] / 0.5)
    torch.testing.assert_close(scaled.decode(tokens), plain.decode(raw))
    assert KL(std=2).std == (2.0,)


def test_a_posterior_sample_belongs_to_the_sample_not_to_the_batch():
    tokenizer = KL(**SMALL, multipliers=(1, 1)).build(8)
    moments = torch.randn(3, 8, 4, 4)
    together = tokenizer.prepare(moments, spawn(7, [4, 5, 6]))
    alone = tokenizer.prepare(moments[1:2], spawn(7, [5]))
    torch.testing.assert_close(together[1:2], alone)


def test_channels_last_and_bfloat16():
    tokenizer = KL(**SMALL, multipliers=(1, 2), attention=(1,)).build(16)
    images = torch.rand(2, 3, 16, 16)
    expected = tokenizer.decode(tokenizer.prepare(tokenizer.encode(images), spawn(0, [0, 1])))
    tokenizer = tokenizer.to(torch.bfloat16, memory_format=torch.channels_last)
    images = images.to(torch.bfloat16, memory_format=torch.channels_last)
    got = tokenizer.decode(tokenizer.prepare(tokenizer.encode(images), spawn(0, [0, 1])))
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 48}, "48 channels"),
        ({"attention": (5,)}, "level 5"),
        ({"std": 0.0}, "std"),
        ({"mean": (0.0, 1.0)}, "mean has 2 values"),
    ],
)
def test_impossible_settings_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        KL(**fields)


def test_images_that_the_stride_does_not_divide_are_refused():
    config = KL(**SMALL, multipliers=(1, 1, 1))
    with pytest.raises(ConfigError, match="stride 4"):
        config.latent_spec(18)
    with pytest.raises(ConfigError, match="18 x 20"):
        config.build(16).encode(torch.zeros(1, 3, 18, 20))


@pytest.mark.parametrize(("name", "millions"), [("sd-vae", 83.65), ("kl-16", 66.46)])
def test_presets_have_the_published_number_of_parameters(name, millions):
    with torch.device("meta"):
        tokenizer = PRESETS[name].build(256)
    assert sum(p.numel() for p in tokenizer.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_deep_compression_trains():
    config = DeepCompression(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(0, 1),
        decoder_layers_per_block=(0, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        std=2.0,
    )
    tokenizer = config.build(16)
    images = torch.rand(2, 3, 16, 16)
    result = tokenizer(images, spawn(0, [0, 1]))
    tokens = tokenizer.prepare(tokenizer.encode(images), spawn(0, [0, 1]))
    assert tokens.shape[1:] == config.latent_spec(16).shape
    torch.testing.assert_close(tokenizer.decode(tokens), result.images)
    result.images.square().mean().backward()
    assert tokenizer.last_layer.grad is not None
    with pytest.raises(ValidationError, match="decoder_layers_per_block"):
        DeepCompression(decoder_layers_per_block=(1,))
