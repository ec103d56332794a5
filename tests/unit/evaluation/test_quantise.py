"""Rounding to 8 bits."""

import pytest
import torch

from genlab.core.errors import NonFinite
from genlab.evaluation.quantise import Rounding, quantise

LEVELS = torch.arange(256).double() / 127.5 - 1.0


@pytest.mark.parametrize("rule", [Rounding.HALF_UP, Rounding.HALF_EVEN, Rounding.SAVE_IMAGE])
def test_levels_survive_rounding(rule):
    assert torch.equal(quantise(LEVELS.float(), rule), torch.arange(256, dtype=torch.uint8))


def test_truncation_darkens_by_half_a_level():
    images = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rounded, truncated = quantise(images), quantise(images, Rounding.TRUNCATE)
    assert (rounded.float() - truncated.float()).mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_middle_of_two_levels():
    middle = torch.zeros(1)  # 127.5 exactly
    assert {rule.value: quantise(middle, rule).item() for rule in Rounding} == {
        "half_up": 128,
        "half_even": 128,
        "save_image": 128,
        "truncate": 127,
    }


def test_overshoot_is_clamped_and_the_input_left_alone():
    images = torch.tensor([-3.0, 3.0])
    for rule in Rounding:
        assert quantise(images, rule).tolist() == [0, 255]
    assert images.tolist() == [-3.0, 3.0]


def test_nan_is_named():
    images = torch.zeros(4, 3, 2, 2)
    images[2, 1, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match=r"in images \[2\]"):
        quantise(images)
