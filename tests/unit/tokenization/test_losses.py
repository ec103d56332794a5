"""Reconstruction losses: what they cost, where their gradients go, and the sizes they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import ConfigError, WeightsUnavailable
from genlab.tokenization.losses.alignment import Alignment
from genlab.tokenization.losses.configs import ReconstructionLosses
from genlab.tokenization.losses.dists import distance
from genlab.tokenization.losses.lpips_network import lpips_network
from genlab.tokenization.losses.ms_ssim import choose_levels, exponents, ms_ssim, ms_ssim_loss
from genlab.tokenization.losses.perceptual import Perceptual


def images(side, seed=0, batch=2):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("side", [8, 64])
def test_every_offline_term_on_any_size(side):
    config = ReconstructionLosses(
        l1=0.5, l2=2.0, ms_ssim=0.25, ms_ssim_window=7, perceptual=Perceptual(name="efflite0", weight=0.1)
    )
    loss = config.build(side)
    x = images(side)
    y = images(side, 1).requires_grad_()
    terms = loss(x, y)
    assert set(terms) == {"l1", "l2", "ms_ssim", "perceptual", "total"}
    expected = 0.5 * terms["l1"] + 2.0 * terms["l2"] + 0.25 * terms["ms_ssim"] + 0.1 * terms["perceptual"]
    torch.testing.assert_close(terms["total"], expected)
    assert terms["total"].shape == (2,)
    terms["total"].sum().backward()
    assert y.grad.isfinite().all() and (y.grad.abs().sum((1, 2, 3)) > 0).all()
    same = loss(x, x.clone())
    assert all(value.abs().max() < 1e-5 for value in same.values())
    loss.train()
    assert not any(module.training for module in loss.distance.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_terms_without_weight_are_not_computed():
    loss = ReconstructionLosses(l1=0.0, l2=1.0, perceptual=None).build(4)
    assert set(loss(images(4), images(4, 1))) == {"l2", "total"}
    with pytest.raises(ValueError, match="no reconstruction loss"):
        ReconstructionLosses(l1=0.0, perceptual=None)


def test_a_flat_reconstruction_has_finite_gradients():
    config = ReconstructionLosses(ms_ssim=1.0, ms_ssim_window=7, perceptual=Perceptual(name="efflite0"))
    y = torch.zeros(2, 3, 16, 16, requires_grad=True)
    config.build(16)(images(16), y)["total"].sum().backward()
    assert y.grad.isfinite().all()


def test_efflite0_orders_distortions():
    loss = Perceptual(name="efflite0").build(64)
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64).contiguous()
    noise = images(64, 2, 1)
    values = [loss(ramp, ramp + scale * noise).item() for scale in (0.0, 0.05, 0.3)]
    assert values == sorted(values) and values[0] == 0


@given(side=st.integers(1, 400), levels=st.sampled_from([None, 1, 2, 3, 4, 5]), window=st.sampled_from([7, 11]))
@settings(deadline=None, max_examples=60)
def test_levels_that_are_promised_can_be_computed(side, levels, window):
    try:
        chosen = choose_levels(side, levels, window)
    except ConfigError as error:
        assert str(side) in str(error)
        return
    assert levels in (None, chosen)
    smallest = side >> (chosen - 1)
    assert smallest >= window
    assert levels is not None or chosen == 5 or side >> chosen < window
    assert sum(exponents(chosen)) == pytest.approx(1.0, abs=2e-4)


def test_a_size_that_is_just_large_enough():
    x = images(22, batch=1)
    assert ms_ssim_loss(x, -x, exponents(choose_levels(22))).shape == (1,)
    with pytest.raises(ConfigError, match="176 pixels, not 128: use 4"):
        choose_levels(128, 5)


def test_ms_ssim_keeps_its_precision_under_autocast():
    x, y = images(48) / 2 + 0.5, images(48, 1) / 2 + 0.5
    expected = ms_ssim(x, y, exponents(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ms_ssim(x, y, exponents(3)), expected, rtol=0, atol=0)


def test_dists_head_is_zero_for_equal_features_and_symmetric():
    x, y = [images(6)], [images(6, 1)]
    alpha, beta = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)
    assert distance(x, x, alpha, beta).abs().max() < 1e-6
    torch.testing.assert_close(distance(x, y, alpha, beta), distance(y, x, alpha, beta))


def test_lpips_is_the_packages_value(tmp_path):
    reference = lpips_network("squeeze").eval()
    path = tmp_path / "trunk.pth"
    torch.save(reference.net.state_dict(), path)
    loss = Perceptual(net="squeeze", weights=path, allow_unofficial=True).build(32)
    x, y = images(32), images(32, 1).requires_grad_()
    torch.testing.assert_close(loss(x, y), reference(x, y).flatten(), rtol=1e-5, atol=1e-7)
    loss(x, y).sum().backward()
    assert y.grad.abs().sum() > 0


def test_absent_weights_and_small_images_are_named(tmp_path):
    with pytest.raises(WeightsUnavailable, match="VGG16"):
        Perceptual(weights=tmp_path / "none.pth").build(64)
    with pytest.raises(ConfigError, match="16 pixels, not 8; use efflite0"):
        Perceptual().build(8)


def test_alignment_is_zero_for_latents_that_map_onto_the_features():
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    loss = Alignment().build(4, 4)
    torch.nn.init.eye_(loss.project.weight)
    assert loss(z, z.flatten(2).mT).abs().max() == 0
    other = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(1))
    value = loss(z.requires_grad_(), other)  # another grid
    assert value.shape == (2,) and (value > 0).all()
    value.sum().backward()
    assert z.grad.abs().sum() > 0 and loss.project.weight.grad.abs().sum() > 0
