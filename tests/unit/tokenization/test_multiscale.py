"""Tokenizers with codes on several scales: sums, schedules, generator's inputs, gradients, counts, configs."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from genlab.convert.autoencoder_keys import to_llamagen, to_taming
from genlab.convert.multiscale_tokenizers import convert, detect, fill
from genlab.core.errors import CheckpointError, ConfigError
from genlab.tokenization.multiscale import FLEXVAR_TOKENIZER, VAR_TOKENIZER, FlexibleVQ, MultiscaleVQ
from genlab.tokenization.quantizers.multiscale import (
    MultiscaleQuantization,
    length,
    phi_of_scale,
    split,
)
from genlab.tokenization.quantizers.vector import LearnedVQ
from samplers.noise import spawn

SMALL = {"width": 8, "multipliers": (1, 1), "blocks": 1, "channels": 4, "groups": 4, "scales": (1, 2, 4)}
CONFIGS = [
    MultiscaleVQ(**SMALL, quantizer={"vocab": 16}),
    FlexibleVQ(**SMALL, code_channels=3, quantizer=LearnedVQ(vocab=16, unit=True)),
]
PUBLISHED = {  # phi of each scale under four convolutions, by the number of scales
    4: "0123",
    5: "01223",
    6: "001233",
    7: "0012233",
    8: "00112233",
    9: "001122233",
    10: "0011122333",
    12: "000111222333",
    13: "0001112222333",
    14: "00011112222333",
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def tokenizer(request):
    return spread(request.param.build(8)).eval()


def spread(tokenizer):
    """Codes as far apart as features are, so that all are used."""
    torch.nn.init.normal_(tokenizer.quantizer.embedding.weight)
    return tokenizer


def images(count=2, size=8):
    return torch.rand(count, 3, size, size) * 2 - 1


@pytest.mark.parametrize(("scales", "expected"), PUBLISHED.items())
def test_phi_of_scale_is_the_published_map(scales, expected):
    assert "".join(map(str, phi_of_scale(scales, 4))) == expected


@st.composite
def schedules(draw):
    last = (draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    coarse = draw(st.lists(st.tuples(st.integers(1, last[0]), st.integers(1, last[1])), max_size=3))
    return (*coarse, last)


@given(schedules())
@settings(max_examples=15, deadline=None)
def test_steps_sums_and_inputs_agree_for_any_schedule(scales):
    quantizer = MultiscaleQuantization(vocab=16).build(4, (1, 2, 4))
    torch.nn.init.normal_(quantizer.embedding.weight)
    f = torch.randn(2, 4, *scales[-1])
    codes = quantizer.encode(f, scales)
    assert codes.shape == (2, length(scales))
    parts = split(codes, scales)
    inputs = split(quantizer.inputs(codes, scales), scales[1:])
    sums = list(quantizer.sums(codes, scales))
    total = None
    for k, part in enumerate(parts):
        total, following = quantizer.step(k, total, part, scales)
        assert torch.allclose(total, sums[k], atol=1e-6)
        assert torch.allclose(total, quantizer.decode(torch.cat(parts[: k + 1], dim=1), scales), atol=1e-6)
        assert (following is None) if k + 1 == len(scales) else torch.allclose(following, inputs[k], atol=1e-6)
        vectors = quantizer.embedding(part)
        assert torch.equal(quantizer.step(k, None, part, scales)[0], quantizer.step(k, None, vectors, scales)[0])


def test_without_convolutions_each_scale_takes_its_nearest_code():
    quantizer = MultiscaleQuantization(vocab=32, phi_strength=0.0).build(4, (1, 4))
    torch.nn.init.normal_(quantizer.embedding.weight)
    f = torch.randn(3, 4, 4, 4)
    coarse, fine = split(quantizer.encode(f), (1, 4))
    table = quantizer.embedding.weight
    assert torch.equal(coarse[:, 0], torch.cdist(f.mean((2, 3)), table).argmin(1))
    rest = (f - table[coarse[:, 0]][:, :, None, None]).flatten(2).transpose(1, 2)
    assert torch.equal(fine, torch.cdist(rest, table).argmin(-1))


def test_gradients_go_straight_to_the_features_and_by_the_loss_to_codes_and_convolutions():
    quantizer = MultiscaleQuantization(vocab=16, commitment=0.0).build(4, (1, 2, 4))
    f = torch.randn(2, 4, 4, 4, requires_grad=True)
    out = quantizer(f)
    assert torch.allclose(out.z, quantizer.decode(out.codes), atol=1e-6)
    slope = torch.randn_like(out.z)
    (out.z * slope).sum().backward()
    assert torch.equal(f.grad, slope)
    assert quantizer.embedding.weight.grad is None
    quantizer(f.detach()).loss.sum().backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0
    used = set(phi_of_scale(3, 4))
    assert all((phi.weight.grad is not None) == (number in used) for number, phi in enumerate(quantizer.phis))


def test_the_whole_quantiser_ignores_autocast():
    quantizer = MultiscaleQuantization(vocab=16).build(4, (1, 2, 4))
    f = torch.randn(2, 4, 4, 4)
    expected = quantizer(f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = quantizer(f)
    assert torch.equal(got.z, expected.z)
    assert torch.equal(got.loss, expected.loss)


def test_counting_needs_training_and_dead_codes_come_back():
    quantizer = MultiscaleQuantization(vocab=64, revive_below=0.05).build(4, (1, 2, 4))
    with torch.no_grad():
        quantizer.embedding.weight[1:] = 1e3  # one code serves everything
    f = torch.randn(16, 4, 4, 4)
    quantizer.eval()(f)
    assert int(quantizer.updates) == 0
    before = quantizer.encode(f).unique().numel()
    quantizer.train()(f)
    assert int(quantizer.updates) == 1
    assert before == 1
    assert quantizer.encode(f).unique().numel() > 30
    assert quantizer.embedding.weight.abs().max() < 1e3


def test_revival_and_random_scales_need_no_global_generator():
    def trained(seed):
        torch.manual_seed(0)
        models = [
            spread(config.build(8)) for config in (CONFIGS[1], MultiscaleVQ(**SMALL, quantizer={"revive_below": 0.1}))
        ]
        batch = images()
        torch.manual_seed(seed)
        return [model(batch, spawn(0, [0, 1])).loss for model in models for _ in range(2)]

    assert all(torch.equal(a, b) for a, b in zip(trained(1), trained(2)))


def test_scale_dropout_hides_fine_scales_from_the_decoder_of_its_own_samples():
    quantizer = MultiscaleQuantization(vocab=16, scale_dropout=1.0).build(4, (1, 2, 4))
    torch.nn.init.normal_(quantizer.embedding.weight)
    f = torch.randn(6, 4, 4, 4)
    out = quantizer(f, spawn(3, range(6)))
    sums = torch.stack(list(quantizer.sums(out.codes)))  # [K,B,...]
    chosen = (out.z - sums).abs().flatten(2).amax(-1).argmin(0)
    assert set(chosen.tolist()) == {0, 1}
    last = quantizer(f[4:], spawn(3, [4, 5]))
    assert torch.allclose(last.z, out.z[4:], atol=1e-6)


def test_a_training_pass_reaches_every_part(tokenizer):
    out = tokenizer.train()(images(), spawn(0, [0, 1]))
    assert out.images.shape == (2, 3, 8, 8)
    assert out.loss.shape == (2,)
    assert out.codes.shape == (2, length(tokenizer.spec.scales))
    (F.mse_loss(out.images, images()) + out.loss.mean()).backward()
    for part in (
        tokenizer.encoder.conv_in,
        tokenizer.quant_conv,
        tokenizer.quantizer.embedding,
        tokenizer.post_quant_conv,
    ):
        assert part.weight.grad.abs().sum() > 0
    assert tokenizer.last_layer.grad.abs().sum() > 0


def test_encoding_then_stepping_gives_the_decoded_image(tokenizer):
    codes = tokenizer.encode(images())
    state = None
    inputs = split(tokenizer.inputs(codes), tokenizer.scales[1:])
    for k, part in enumerate(split(codes, tokenizer.scales)):
        state, following = tokenizer.step(k, state, part)
        if following is not None:
            assert torch.allclose(following, inputs[k], atol=1e-6)
    assert torch.allclose(tokenizer.reconstruct(state), tokenizer.decode(codes), atol=1e-5)


def test_schedules_and_aspect_ratios_at_call_time(tokenizer):
    wide = torch.rand(2, 3, 8, 12) * 2 - 1
    scales = (1, (2, 3), (4, 6))
    codes = tokenizer.encode(wide, scales)
    assert codes.shape == (2, 1 + 6 + 24)
    assert tokenizer.decode(codes, scales).shape == wide.shape
    sizes = {"multiscale": (8, 12), "flexible": (4, 6)}
    assert tokenizer.decode(codes[:, :7], scales).shape[-2:] == sizes[tokenizer.config.name]


def test_flexible_scales_stand_alone():
    tokenizer = spread(CONFIGS[1].build(8)).eval()
    batch = images()
    codes = tokenizer.encode(batch)
    pictures = tokenizer.decode_scales(codes)
    assert [picture.shape[-1] for picture in pictures] == [2, 4, 8]
    second = split(codes, tokenizer.scales)[1]
    assert torch.equal(second, tokenizer.encode(batch, (2,)))
    assert torch.equal(pictures[1], tokenizer.decode(second, (2,)))
    vectors, _ = tokenizer.step(1, None, second)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(()), atol=1e-5)


def test_codes_that_end_within_a_scale_are_refused(tokenizer):
    codes = tokenizer.encode(images())
    for count in (3, 22):
        with pytest.raises(ConfigError, match=f"{count} codes"):
            tokenizer.decode(F.pad(codes, (0, 1))[:, :count])


def test_a_spec_needs_no_modules_and_chooses_the_schedule():
    for config, channels in ((VAR_TOKENIZER, 32), (FLEXVAR_TOKENIZER, 32)):
        spec = config.latent_spec(512)
        assert (spec.kind, spec.channels, spec.grid, spec.scales[-1]) == ("multiscale", channels, (32, 32), 32)
        assert config.latent_spec(256).scales == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
        with pytest.raises(ConfigError, match="24 x 24"):
            config.latent_spec(384)


def test_impossible_configs_are_refused():
    with pytest.raises(ValidationError, match="larger than the one before"):
        MultiscaleVQ(**{**SMALL, "scales": (1, 3, 2)})
    with pytest.raises(ValidationError, match="one length"):
        MultiscaleVQ(**{**SMALL, "scales": [[1, 2, 4], [1, 8]]}, quantizer={"phis": 0})
    own = MultiscaleQuantization(phis=0).build(4, (1, 2, 4))
    with pytest.raises(ConfigError, match="each of its 3"):
        own.encode(torch.zeros(1, 4, 4, 4), (1, 4))
    with pytest.raises(ConfigError, match="last scale"):
        own.encode(torch.zeros(1, 4, 5, 5))


PHIS = {  # how the published code names the convolutions, and the settings that have them
    "quant_resi.qresi_ls.{}": {"phis": 4},
    "quant_resi.qresi": {"phis": 1},
    "quant_resi.{}": {"phis": 0},
    "": {"phis": 1, "phi_strength": 0.0},
}


@pytest.mark.parametrize(("name", "options"), PHIS.items())
def test_published_names_of_var_convert_and_sizes_are_recognised(name, options):
    config = MultiscaleVQ(**SMALL, quantizer={"vocab": 16, **options})
    ours = config.build(8)
    state = {}
    for key, value in to_taming(ours.state_dict()).items():
        key = key.replace("quantizer.", "quantize.").replace("quantize.hits", "quantize.ema_vocab_hit_SV")
        state[re.sub(r"phis\.(\d)", lambda found: name.format(found[1]), key)] = value
    del state["quantize.updates"]
    assert detect(state) == "multiscale"
    found, named = convert(state, "file", groups=4)
    assert found.model_copy(update={"scales": config.scales}) == config
    theirs = config.build(8)
    fill(theirs, named, "file")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters()))


def test_published_names_of_flexvar_convert():
    config = FlexibleVQ(**SMALL, quantizer=LearnedVQ(vocab=16, unit=True))
    ours = config.build(8)
    state = {key.replace("quantizer.", "quantize."): value for key, value in to_llamagen(ours.state_dict()).items()}
    del state["updates"]
    state["quantize.codebook_used"] = torch.zeros(65536)
    assert detect(state) == "flexible"
    found, named = convert(state, "file", groups=4)
    assert found.model_copy(update={"scales": config.scales}) == config
    fill(config.build(8), named, "file")


def test_other_files_are_no_multiscale_tokenizers():
    state = {"encoder.conv_in.weight": torch.zeros(1), "quantize.embedding.weight": torch.zeros(2, 8)}
    assert detect(state) is None
    with pytest.raises(CheckpointError, match="neither"):
        convert(state, "file")
