"""Crops, resizing and flips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genlab.convert.goldens import Golden
from genlab.data.decode import Unreadable
from genlab.data.transforms import Augmentation, Framing, center_crop, random_crop

_ROOT = Path(__file__).parents[3]
_PLACES = [
    _ROOT.parent / "shared/goldens/dit/center_crop.safetensors",
    _ROOT / "tests/goldens/dit/center_crop.safetensors",
]


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_center_crop_equals_adm_to_the_pixel():
    path = next((path for path in _PLACES if path.is_file()), None)
    if path is None:
        pytest.skip("the golden file center_crop is not at hand")
    golden = Golden.load(path)
    outputs = golden.group("out")
    assert len(outputs) == 6
    for name, expected in outputs.items():
        source, size = name.rsplit("_", 1)
        cropped = center_crop(Image.fromarray(golden[f"in.{source}"].numpy()), int(size))
        assert torch.equal(torch.from_numpy(np.array(cropped)), expected), name


@settings(deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(3, 150),
    size=st.integers(1, 40),
    crop=st.sampled_from(["adm", "random", "squash"]),
    position=st.none() | st.integers(0, 2**40),
)
def test_every_shape_becomes_square(width, height, size, crop, position):
    framing = Framing(size=size, crop=crop, flip=True)
    [augmentation] = framing.draw(None if position is None else [position], 1)
    if max(width, height) > 64 * min(width, height):
        with pytest.raises(Unreadable, match="strip"):
            framing.apply(_noise(width, height), augmentation)
        return
    assert framing.apply(_noise(width, height), augmentation).shape == (size, size, 3)


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2**-24])
def test_random_crops_stay_inside(extreme):
    choice = Augmentation(extreme, extreme, extreme, extreme)
    for width, height in [(32, 32), (40, 90), (300, 100)]:
        assert random_crop(_noise(width, height), 32, choice).size == (32, 32)


def test_random_crops_vary_in_place_and_scale():
    image = _noise(100, 80)
    framing = Framing(size=32, crop="random")
    crops = {framing.apply(image, augmentation).tobytes() for augmentation in framing.draw(range(50), 50)}
    assert len(crops) > 35


def test_augmentation_is_a_function_of_seed_and_position():
    framing = Framing(size=8, flip=True)
    together = framing.draw(range(100), 100)
    assert [framing.draw([position], 1)[0] for position in range(100)] == together
    assert framing.model_copy(update={"seed": 1}).draw(range(100), 100) != together
    assert 30 < sum(augmentation.flip < 0.5 for augmentation in together) < 70


def test_a_flip_mirrors_and_no_position_means_no_augmentation():
    image, framing = _noise(8, 8), Framing(size=8, flip=True)
    pixels = np.asarray(image)
    assert np.array_equal(framing.apply(image, Augmentation(0.1, 0, 0, 0)), pixels[:, ::-1])
    assert np.array_equal(framing.apply(image, Augmentation(0.9, 0, 0, 0)), pixels)
    assert np.array_equal(framing.apply(image, framing.draw(None, 1)[0]), pixels)
    assert Framing(size=8).draw([3], 1) == [None]
