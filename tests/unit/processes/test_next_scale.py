import pytest
import torch

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError, DataError
from genlab.networks.dit import DiT
from genlab.networks.flexvar import FlexVAR
from genlab.networks.mvar import MVAR
from genlab.networks.var import VAR
from genlab.nn.scales import grids_of
from genlab.processes.next_scale import NextScale, NextScaleConfig
from genlab.processes.next_scale_sampling import Edit, NextScaleSampling, guidance_at, to_latent_mask
from genlab.tokenization.multiscale import FlexibleVQ, MultiscaleVQ
from genlab.tokenization.quantizers.multiscale import MultiscaleQuantization
from genlab.tokenization.quantizers.vector import LearnedVQ
from samplers.noise import spawn

SCALES, VOCAB = (1, 2, 3, 5), 13
AUTOENCODER = {"width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2, "scales": SCALES}
ADDITIVE = MultiscaleVQ(**AUTOENCODER, channels=4, quantizer=MultiscaleQuantization(vocab=VOCAB))
FLEXIBLE = FlexibleVQ(**AUTOENCODER, channels=4, code_channels=4, quantizer=LearnedVQ(vocab=VOCAB, unit=True))
SIZES = {"channels": 4, "vocab": VOCAB, "num_classes": 3, "width": 32, "depth": 2, "heads": 2}


def perturbed(network):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


@pytest.fixture(params=[(VAR, ADDITIVE), (MVAR, ADDITIVE), (FlexVAR, ADDITIVE), (FlexVAR, FLEXIBLE)])
def parts(request):
    """Network, process over a tokenizer, spec."""
    kind, config = request.param
    torch.manual_seed(1)
    tokenizer = config.build(10).eval()
    return perturbed(kind(SCALES, **SIZES)), NextScale().over(tokenizer), tokenizer.spec


GUIDED = NextScaleSampling(guidance=3.0)


def sample(parts, settings=GUIDED, label=(0, 2, 1), index=(0, 1, 2), on_step=None):
    network, process, spec = parts
    return process.sample(network, torch.tensor(label), spec, spawn(7, index), settings, on_step)


SETTINGS = [
    NextScaleSampling(),
    NextScaleSampling(guidance=3.0, top_k=5, top_p=0.9),
    NextScaleSampling(guidance=2.0, guidance_ramp=False, top_k=1),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_samples_do_not_depend_on_their_batch(parts, settings):
    together = sample(parts, settings)
    assert together.shape == (3, 39)
    assert together.min() >= 0 and together.max() < VOCAB
    assert torch.equal(sample(parts, settings, (1,), (2,)), together[2:])


def test_codes_are_what_a_full_pass_makes_likeliest(parts):
    """No cache, no step: the logits of all scales at once, of the finished codes."""
    network, process, _ = parts
    label = torch.tensor([0, 2, 1])
    codes = sample(parts, NextScaleSampling(guidance=3.0, top_k=1))
    with torch.no_grad():
        x = process.tokenizer.inputs(codes)
        conditional, unconditional = network(x, label), network(x, torch.full_like(label, network.null_label))
    scale = torch.tensor([1 + 2 * k / 3 for k in range(4)]).repeat_interleave(torch.tensor([1, 4, 9, 25]))
    guided = unconditional + scale[:, None] * (conditional - unconditional)
    assert torch.equal(guided.argmax(-1), codes)


def test_every_step_is_a_scale_that_the_tokenizer_can_show(parts):
    seen = []
    codes = sample(parts, on_step=lambda event: seen.append(event))
    assert [event.step for event in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1].tokens, codes)
    shown = [parts[1].tokenizer.decode(event.tokens) for event in seen]
    assert all(image.isfinite().all() and image.shape[:2] == (3, 3) for image in shown)


def test_loss_is_the_mean_cross_entropy_of_codes(parts):
    network, process, _ = parts
    codes, label = sample(parts), torch.tensor([0, 2, 3])
    losses = process.loss(network, codes, label, spawn(0, range(3)))
    logits = network(process.tokenizer.inputs(codes), label)
    expected = -logits.log_softmax(-1).gather(2, codes.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(losses["loss"], expected.mean(1))
    torch.testing.assert_close(losses["last"], expected[:, -25:].mean(1))
    losses["loss"].mean().backward()
    assert all(value.shape == (3,) for value in losses.values())


def test_a_mixture_is_returned_as_vectors():
    torch.manual_seed(1)
    tokenizer = ADDITIVE.build(10).eval()
    parts = perturbed(VAR(SCALES, **SIZES)), NextScale().over(tokenizer), tokenizer.spec
    vectors = sample(parts, NextScaleSampling(guidance=2.0, more_smooth=True))
    assert vectors.shape == (3, 39, 4)
    assert tokenizer.decode(vectors).shape == (3, 3, 10, 10)
    torch.testing.assert_close(
        sample(parts, NextScaleSampling(guidance=2.0, more_smooth=True), (2,), (1,)), vectors[1:2]
    )


def edit(parts, change, settings=GUIDED):
    network, process, spec = parts
    return process.edit(network, torch.tensor([0, 1]), spec, spawn(3, [0, 1]), settings, change)


def test_an_edit_keeps_what_the_mask_covers(parts):
    own = sample(parts, label=(2, 2), index=(5, 6))
    mask = torch.zeros(5, 5)
    mask[:, :2] = 1
    painted = edit(parts, Edit(own, mask))
    last, before = painted[:, -25:].view(-1, 5, 5), own[:, -25:].view(-1, 5, 5)
    assert torch.equal(last[:, :, :2], before[:, :, :2])
    assert not torch.equal(last[:, :, 2:], before[:, :, 2:])
    assert torch.equal(painted[:, :1], own[:, :1])
    assert torch.equal(edit(parts, Edit(own, torch.ones(5, 5))), own)


def test_images_are_edited(parts):
    network, process, _ = parts
    image = torch.rand(1, 3, 10, 10) * 2 - 1
    mask = torch.ones(10, 10)
    label = torch.tensor([0, network.null_label])
    kept = process.edit_images(network, label, image, mask, spawn(0, [0, 1]), GUIDED)
    again = process.tokenizer.decode(process.tokenizer.encode(image)).clamp(-1, 1)
    torch.testing.assert_close(kept, again.expand(2, -1, -1, -1))
    fresh = process.edit_images(network, label, image, mask.fill_(0), spawn(0, [0, 1]), GUIDED)
    assert not torch.isclose(fresh, kept).all()
    with pytest.raises(ConfigError, match="mask of"):
        process.edit_images(network, label, image, mask[:5], spawn(0, [0, 1]), GUIDED)


def test_a_canvas_grows_to_the_side():
    """FlexVAR: the image in the middle stays, what is around it is painted."""
    torch.manual_seed(1)
    tokenizer = FLEXIBLE.build(10).eval()
    settings = NextScaleSampling(scales=((1, 1), (2, 4), (5, 10)))
    canvas, mask = torch.zeros(1, 3, 10, 20), torch.zeros(10, 20)
    canvas[..., 5:15], mask[:, 5:15] = torch.rand(1, 3, 10, 10), 1.0
    network, process = perturbed(FlexVAR(SCALES, **SIZES)), NextScale().over(tokenizer)
    out = process.edit_images(network, torch.tensor([0, 1]), canvas, mask, spawn(0, [0, 1]), settings)
    assert out.shape == (2, 3, 10, 20)


def test_scales_are_regenerated_from_one_on(parts):
    own = sample(parts, label=(2, 2), index=(5, 6))
    again = edit(parts, Edit(own[:, :14], from_scale=3))
    assert torch.equal(again[:, :14], own[:, :14])
    assert not torch.equal(again, own)


@pytest.mark.parametrize("scales", [(1, 2, 4, 7), ((1, 1), (2, 4), (4, 8))])
def test_flexvar_makes_larger_and_oblong_images(scales):
    torch.manual_seed(1)
    tokenizer = FLEXIBLE.build(10).eval()
    settings = NextScaleSampling(guidance=2.0, scales=scales, trained_side=5)
    parts = perturbed(FlexVAR(SCALES, **SIZES)), NextScale().over(tokenizer), tokenizer.spec
    codes = sample(parts, settings)
    height, width = grids_of(scales)[-1]
    assert parts[1].decode(tokenizer, codes, settings).shape == (3, 3, 2 * height, 2 * width)


def test_guidance_rises_with_the_scales_and_beyond():
    grids = grids_of(range(1, 13))
    ramp = [guidance_at(NextScaleSampling(guidance=3.0, ramp_scales=10), k, grids) for k in range(12)]
    assert ramp[0] == 1.0 and ramp[9] == 3.0 and ramp[11] > 3.0
    assert guidance_at(NextScaleSampling(guidance=3.0, trained_side=5), 6, grids) == 3.0
    assert guidance_at(NextScaleSampling(guidance=3.0, guidance_ramp=False), 0, grids) == 3.0


def test_random_schedules_are_legal_and_repeat():
    process, grids = NextScale(schedules="random", longest=680), grids_of(range(1, 17))
    drawn = [process._draw(grids, spawn(0, [i])) for i in range(200)]
    assert drawn == [process._draw(grids, spawn(0, [i])) for i in range(200)]
    lengths = [sum(grids[k][0] ** 2 for k in chosen) for chosen in drawn]
    assert max(lengths) <= 680
    assert all(chosen[:2] == [0, 1] and chosen == sorted(set(chosen)) for chosen in drawn)
    assert 0.3 < sum(chosen[-1] == 15 for chosen in drawn) / 200 < 1
    assert any([grids[k][0] for k in chosen] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16] for chosen in drawn)


def test_random_schedules_train_on_parts_of_the_codes():
    torch.manual_seed(1)
    tokenizer = FLEXIBLE.build(10).eval()
    process = NextScale(schedules="random", longest=30).over(tokenizer)
    codes = tokenizer.encode(torch.rand(2, 3, 10, 10) * 2 - 1)
    losses = process.loss(perturbed(FlexVAR(SCALES, **SIZES)), codes, torch.tensor([0, 1]), spawn(0, [0, 1]))
    assert losses["loss"].isfinite().all()
    with pytest.raises(ConfigError, match="scales add up"):
        process.over(ADDITIVE.build(10))


def test_misuse_is_named():
    torch.manual_seed(1)
    tokenizer = ADDITIVE.build(10).eval()
    process, spec = NextScaleConfig().build().over(tokenizer), tokenizer.spec
    parts = VAR(SCALES, **SIZES), process, spec
    own = sample(parts, label=(0, 1), index=(0, 1))
    with pytest.raises(ValueError, match="top_k"):
        NextScaleSampling(top_k=0)
    with pytest.raises(ConfigError, match=r"top_k must lie in 1\.\.13"):
        sample(parts, NextScaleSampling(top_k=14))
    with pytest.raises(ConfigError, match="knows the places"):
        sample(parts, NextScaleSampling(scales=(1, 2, 4)))
    with pytest.raises(ConfigError, match="coarse to fine"):
        sample(parts, NextScaleSampling(scales=(1, 4, 2)))
    with pytest.raises(ConfigError, match="mask of"):
        edit(parts, Edit(own, torch.ones(4, 4)))
    with pytest.raises(ConfigError, match="scales that stay"):
        edit(parts, Edit(own[:, :5], torch.ones(5, 5)))
    with pytest.raises(ConfigError, match="from_scale"):
        edit(parts, Edit(own, from_scale=5))
    with pytest.raises(DataError, match=r"vocabulary is 0\.\.12"):
        edit(parts, Edit(own + 13, torch.ones(5, 5)))
    with pytest.raises(DataError, match="codes"):
        process.loss(parts[0], own.clone().fill_(13), torch.tensor([0, 1]), spawn(0, [0, 1]))
    with pytest.raises(DataError, match="3 codes an image"):
        process.loss(parts[0], own[:, :3], torch.tensor([0, 1]), spawn(0, [0, 1]))
    with pytest.raises(ConfigError, match="no tokenizer"):
        NextScale().sample(parts[0], torch.tensor([0]), spec, spawn(0, [0]), NextScaleSampling())
    with pytest.raises(ConfigError, match="needs network var"):
        sample((DiT((4, 4), 1, 2, 32, 1, 2), process, spec))
    flexible = NextScale().over(FLEXIBLE.build(10).eval())
    with pytest.raises(ConfigError, match="more_smooth"):
        sample((parts[0], flexible, spec), NextScaleSampling(more_smooth=True))
    with pytest.raises(ConfigError, match="got continuous"):
        continuous = FLEXIBLE.build(10)
        continuous.spec = LatentSpec("continuous", 4, (5, 5), 10)
        NextScale().over(continuous)


def test_masks_of_pixels_become_masks_of_cells():
    mask = torch.zeros(8, 8)
    mask[:, :5] = 1
    assert to_latent_mask(mask, (4, 4)).sum(0).tolist() == [4, 4, 0, 0]
    assert to_latent_mask(mask.expand(2, 8, 8), (2, 4)).shape == (2, 2, 4)
