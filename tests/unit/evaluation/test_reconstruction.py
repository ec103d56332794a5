"""PSNR, SSIM and LPIPS."""

import pytest
import torch

from genlab.convert.golden_images import recipe_weights
from genlab.core.errors import DataError, WeightsUnavailable
from genlab.evaluation.reconstruction import load_lpips, mse, psnr, ssim
from genlab.tokenization.losses.lpips_network import lpips_network

RANDOM = torch.Generator().manual_seed(0)
ORIGINALS = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8, generator=RANDOM)
IMAGES = (ORIGINALS.int() + torch.randint(-9, 10, ORIGINALS.shape, generator=RANDOM)).clamp(0, 255).to(torch.uint8)


def test_psnr_of_a_known_error():
    darker = ORIGINALS.clamp(min=5) - 5
    assert torch.equal(mse(darker, darker + 5), torch.full((3,), 25.0, dtype=torch.float64))
    assert psnr(torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(48.1308, abs=1e-4)
    assert psnr(mse(ORIGINALS, ORIGINALS)).isinf().all()


def test_ssim_is_one_for_equal_images_and_below_otherwise():
    for variant in ("torchmetrics", "skimage_gaussian", "skimage_uniform7"):
        torch.testing.assert_close(ssim(ORIGINALS, ORIGINALS, variant), torch.ones(3, dtype=torch.float64))
        assert (ssim(IMAGES, ORIGINALS, variant) < 1.0).all()


def test_a_single_image_still_gives_one_value_per_image():
    assert ssim(IMAGES[:1], ORIGINALS[:1]).shape == (1,)


def test_refusals():
    with pytest.raises(DataError, match="differ in shape"):
        mse(IMAGES, ORIGINALS[:, :, :8])
    with pytest.raises(DataError, match="uint8"):
        ssim(IMAGES.float(), ORIGINALS.float())
    with pytest.raises(DataError, match="smaller than its 11x11 window"):
        ssim(IMAGES[:, :, :8, :8], ORIGINALS[:, :, :8, :8])
    with pytest.raises(DataError, match="no SSIM variant"):
        ssim(IMAGES, ORIGINALS, "best")


def test_lpips_takes_torchvisions_file(tmp_path):
    trunk = recipe_weights(lpips_network("squeeze").net, 1)
    as_torchvision = {"features." + key.partition(".")[2]: value for key, value in trunk.items()}
    torch.save(as_torchvision | {"classifier.1.bias": torch.zeros(1000)}, tmp_path / "squeezenet.pth")
    metric = load_lpips("squeeze", tmp_path / "squeezenet.pth", allow_unofficial=True)
    distance = metric(IMAGES, ORIGINALS)
    assert distance.shape == (3,) and (distance > 0).all()
    assert torch.equal(metric(ORIGINALS, ORIGINALS), torch.zeros(3, dtype=torch.float64))
    assert metric.per_layer(IMAGES, ORIGINALS).shape == (3, 7)
    with pytest.raises(DataError, match="too small"):
        metric(IMAGES[:, :, :8, :8], ORIGINALS[:, :, :8, :8])


def test_lpips_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailable, match=r"vgg16-397923af\.pth .* not cached"):
        load_lpips("vgg")
