"""The quick resizing forms against the tools they stand for."""

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from genlab.evaluation import resize

SIZES = [(32, 32), (64, 48), (299, 299), (300, 17), (1, 5), (512, 400)]


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SIZES)
def test_tf1_bilinear_equals_torch_fidelity(shape):
    images = noise(*shape)
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert torch.equal(resize.tf1_bilinear(images, 299), expected)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SIZES)
def test_fixed_point_arithmetic_equals_pillow(shape, kind):
    images = noise(*shape)
    for size in (224, (31, 400)):
        assert torch.equal(resize.pil_on_device(images, size, kind), resize.pil(images, size, kind))


def test_clean_fid_is_clipped_and_torch_is_not():
    images = noise(16, 16)
    assert resize.clean_fid_bicubic(images, 37).aminmax() == (0.0, 255.0)
    assert resize.bicubic_antialias(images, 37).max() > 255.0


def test_centre_square():
    images = torch.arange(5).expand(1, 3, 2, 5)
    assert resize.centre_square(images)[0, 0, 0].tolist() == [1, 2]
