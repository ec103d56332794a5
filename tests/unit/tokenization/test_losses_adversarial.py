"""Adversarial losses, their schedule and weight, discriminators, and DiffAugment."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from genlab.core.errors import ConfigError, WeightsUnavailable
from genlab.tokenization.losses.adversarial import (
    AdversarialSettings,
    DiscriminatorConfig,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from genlab.tokenization.losses.augment import cutout, diff_augment, translation
from genlab.tokenization.losses.dino_discriminator import Dino
from genlab.tokenization.losses.discriminators import PatchGAN, StyleGAN
from samplers.noise import spawn


@pytest.mark.parametrize("loss", ["hinge", "vanilla", "non_saturating"])
def test_losses_push_logits_the_right_way(loss):
    real, fake = torch.zeros(3, 1, 2, 2, requires_grad=True), torch.zeros(3, 1, 2, 2, requires_grad=True)
    value = discriminator_loss(real, fake, loss)
    assert value.shape == (3,)
    value.sum().backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    logits = torch.zeros(3, requires_grad=True)
    generator_loss(logits, loss).sum().backward()
    assert (logits.grad < 0).all()


def test_adaptive_weight_balances_the_gradients():
    layer = torch.ones(4, requires_grad=True)
    strong, weak = 100.0 * (layer * layer).sum(), 0.5 * layer.sum()
    weight = adaptive_weight(strong, weak, layer)
    assert weight.item() == pytest.approx(400.0, rel=1e-3)
    assert not weight.requires_grad
    (strong + weight * weak).backward()  # the graph is still there
    assert adaptive_weight(strong.detach().requires_grad_(), 0.5 * layer.sum(), layer, lowest=0.015).item() == (
        pytest.approx(0.015)
    )


@given(seen=st.integers(0, 500), start=st.integers(0, 200), warmup=st.integers(0, 100), ramp=st.integers(0, 100))
def test_the_factor_rises_from_zero_to_one(seen, start, warmup, ramp):
    config = AdversarialSettings(start=start, discriminator_warmup=warmup, ramp=ramp)
    factor = config.factor(seen)
    assert 0.0 <= factor <= 1.0
    assert factor <= config.factor(seen + 1)
    assert factor == 0.0 or config.discriminator_trains(seen)
    assert config.factor(start + warmup + ramp) == 1.0
    assert seen >= start + warmup or factor == 0.0


def test_lecam_follows_the_means_and_survives_saving():
    lecam = LeCam(decay=0.5)
    lecam.update(torch.full((2, 1), 4.0), torch.full((2, 1), -4.0))
    lecam.update(torch.full((2, 1), 2.0), torch.full((2, 1), -2.0))
    assert (lecam.real.item(), lecam.fake.item()) == (3.0, -3.0)
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    value = other(torch.tensor([1.0, -5.0]), torch.tensor([1.0, 5.0]))
    assert value.tolist() == [16.0 + 4.0, 0.0]


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize(
    ("config", "side", "shape"),
    [
        (PatchGAN(width=8, layers=1), 8, (2, 1, 2, 2)),
        (PatchGAN(width=8, layers=3, norm="group"), 24, (2, 1, 1, 1)),
        (PatchGAN(width=8, layers=2, norm="none"), 64, (2, 1, 14, 14)),
        (StyleGAN(multiplier=1 / 64), 8, (2, 1)),
        (StyleGAN(multiplier=1 / 64), 32, (2, 1)),
    ],
)
def test_discriminators_judge_the_sizes_they_accept(config, side, shape, spectral):
    config = config.model_copy(update={"spectral": spectral})
    network = TypeAdapter(DiscriminatorConfig).validate_python(config.model_dump()).build(side)
    images = torch.randn(2, 3, side, side, requires_grad=True)
    logits = network(images)
    assert logits.shape == shape
    generator_loss(logits).sum().backward()
    assert images.grad.abs().sum() > 0


@given(side=st.integers(2, 40), layers=st.integers(1, 3))
def test_patchgan_works_or_says_which_depth_does(side, layers):
    config = PatchGAN(width=2, layers=layers, norm="none")
    try:
        network = config.build(side)
    except ConfigError as error:
        hint = str(error).rpartition("layers: ")[2]
        if hint.isdigit():
            config.model_copy(update={"layers": int(hint)}).build(side)
        else:
            assert side < 6
    else:
        assert network(torch.zeros(1, 3, side, side)).numel() >= 1


@pytest.mark.parametrize("side", [4, 24])
def test_stylegan_refuses_other_sizes(side):
    with pytest.raises(ConfigError, match="use patchgan"):
        StyleGAN().build(side)


def test_dino_learns_with_its_heads_only(tmp_path):
    import timm

    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_small_patch16_224.dino", num_classes=0).state_dict(), path)
    network = Dino(weights=path).build(32).train()
    assert not network.backbone.training and network.heads.training
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    logits = network(images)
    assert logits.shape == (1, 5 * 196)
    generator_loss(logits).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.heads.parameters())


def test_dino_without_weights_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(WeightsUnavailable, match="no file"):
        Dino(weights=tmp_path / "none.pth").build(32)


def test_augmentation_belongs_to_the_sample():
    images = torch.rand(4, 3, 12, 16)
    policies = ("color", "translation", "cutout")
    whole = diff_augment(images, spawn(3, range(4)), policies)
    part = diff_augment(images[2:], spawn(3, [2, 3]), policies)
    torch.testing.assert_close(whole[2:], part)
    assert not torch.equal(whole, diff_augment(images, spawn(4, range(4)), policies))
    assert diff_augment(images, spawn(3, range(4)), ()) is images


def test_translation_and_cutout_by_hand():
    x = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    moved = translation(x, torch.tensor([1]), torch.tensor([-2]))
    assert moved[0, 0].tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
    cut = cutout(torch.ones(1, 1, 4, 4), torch.tensor([0]), torch.tensor([2]))
    assert cut[0, 0].tolist() == [[1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
