"""Sources that need no files: digits, photos, fractals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from genlab.core.errors import DataError
from genlab.data import photos as photos_module
from genlab.data.configs import DataConfig
from genlab.data.digits import Digits
from genlab.data.fractals import Fractals
from genlab.data.ifs import attractor, draw_system, finest_for
from genlab.data.photos import Photos

_CONFIGS = [Digits(), Digits(size=16, held_out=0.2), Photos(size=16), Photos(size=16, flip=True), Fractals(size=16)]


@pytest.mark.parametrize("config", _CONFIGS, ids=repr)
def test_what_every_source_promises(config):
    source = config.build()
    images, labels = source.fetch([3, 1, 3], [10, 11, 10])
    assert images.shape == (3, 3, source.image_size, source.image_size)
    assert images.dtype == torch.uint8 and images.is_contiguous()
    assert labels.dtype == torch.int64 and labels.max() < source.num_classes
    assert torch.equal(images[0], images[2])
    alone, _ = config.build().fetch([1], [11])
    assert torch.equal(alone[0], images[1]), "an image must not depend on its batch"
    assert source.fingerprint() == config.build().fingerprint()


@pytest.mark.parametrize("config", [Digits(held_out=0.2), Photos(size=16), Fractals(size=16)], ids=repr)
def test_the_test_split_is_other_data(config):
    train, test = config.build("train"), config.build("test")
    assert train.fingerprint() != test.fingerprint()
    first = {image.numpy().tobytes() for image in train.fetch(range(len(train) if len(train) < 2000 else 200))[0]}
    second = {image.numpy().tobytes() for image in test.fetch(range(100))[0]}
    assert not first & second


def test_settings_change_the_fingerprint():
    assert len({config.build().fingerprint() for config in _CONFIGS}) == len(_CONFIGS)


def test_a_config_is_chosen_by_name():
    config = TypeAdapter(DataConfig).validate_python({"name": "fractals", "size": 32})
    assert config == Fractals(size=32)


def test_digits_are_all_there():
    digits = Digits().build()
    images, labels = digits.fetch(range(len(digits)))
    assert len(digits) == 1797 and digits.class_names == tuple("0123456789")
    assert images.min() == 0 and images.max() == 255
    assert labels[:4].tolist() == [0, 1, 2, 3]
    assert torch.equal(images[:, 0], images[:, 2])


def test_digits_are_held_out_by_class():
    config = Digits(held_out=0.2)
    train, test = config.build("train"), config.build("test")
    assert len(train) + len(test) == 1797
    counts = [torch.bincount(part.fetch(range(len(part)))[1]) for part in (train, test)]
    share = counts[1] / (counts[0] + counts[1])
    assert (share - 0.2).abs().max() < 0.005


def test_digits_grow_by_squares():
    small, large = Digits().build(), Digits(size=24).build()
    assert torch.equal(large.fetch([5])[0][..., 1::3, 1::3], small.fetch([5])[0])
    with pytest.raises(ValidationError, match="multiple of 8"):
        Digits(size=12)


@pytest.mark.parametrize("config", [Digits(), Photos(held_out=0.0)])
def test_no_test_split_where_nothing_is_held_out(config):
    with pytest.raises(DataError, match="held_out"):
        config.build("test")


def test_photo_regions_of_the_splits_do_not_overlap():
    for name in photos_module._PHOTOGRAPHS:
        whole = photos_module._load(name)
        train, test = (photos_module._region(name, 0.25, split).image for split in ("train", "test"))
        axis = 1 if whole.width >= whole.height else 0
        joined = np.concatenate([np.asarray(train), np.asarray(test)], axis)
        assert np.array_equal(joined, np.asarray(whole))


def test_photo_flips_follow_the_position():
    source = Photos(size=16, flip=True).build()
    images, _ = source.fetch([0] * 64, range(64))
    plain = source.fetch([0])[0][0]
    mirrored = [torch.equal(image, plain.flip(2)) for image in images]
    assert all(flipped or torch.equal(image, plain) for flipped, image in zip(mirrored, images))
    assert 16 < sum(mirrored) < 48


def test_fractal_classes_are_distinct_and_images_within_vary():
    source = Fractals(size=32, classes=20).build()
    images, labels = source.fetch(range(400))
    pixels = images.double().flatten(1)
    centers = torch.stack([pixels[:200][labels[:200] == label].mean(0) for label in range(20)])
    nearest = torch.cdist(pixels[200:], centers).argmin(1)
    assert (nearest == labels[200:]).double().mean() > 0.95
    assert len({image.numpy().tobytes() for image in images}) == 400


def test_fractals_fill_the_frame():
    images, _ = Fractals(size=64, classes=30).build().fetch(range(30))
    for image in images:
        lit = (image.int() - image[:, :1, :1].int()).abs().sum(0) > 40
        rows, columns = lit.any(1).nonzero(), lit.any(0).nonzero()
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) > 50
        assert 0.08 < lit.double().mean() < 0.8


def test_fractals_of_one_class_are_unconditional():
    source = Fractals(size=16, classes=1).build()
    assert source.num_classes == 0 and source.class_names == ()
    assert source.fetch(range(4))[1].tolist() == [0, 0, 0, 0]


def test_a_class_keeps_its_system_whatever_the_number_of_classes():
    few, many = Fractals(size=16, classes=5).build(), Fractals(size=16, classes=500).build()
    assert torch.equal(few.fetch([3])[0], many.fetch([3])[0])


@pytest.mark.parametrize("seed", range(5))
def test_systems_contract_and_their_points_are_many_enough(seed):
    system = draw_system(np.random.default_rng(seed))
    assert np.linalg.norm(system.linear, 2, axis=(1, 2)).max() < 1.0
    finest = finest_for(system.scales, 2000)
    hues = np.linspace(0, 1, len(system.shift), dtype=np.float32)
    points, blend = attractor(system.linear[None], system.shift[None], hues, system.scales, finest)
    assert points.shape == (1, len(blend), 2) and 2000 <= len(blend) <= 8000
    assert blend.min() >= 0.0 and blend.max() <= 1.0


def test_points_lie_on_the_attractor():
    """The Sierpinski triangle is known: no point of it lies in the open middle triangle."""
    linear = np.tile(np.eye(2, dtype=np.float32) / 2, (1, 3, 1, 1))
    shift = np.array([[[0, 0], [0.5, 0], [0, 0.5]]], dtype=np.float32)
    points, _ = attractor(linear, shift, np.zeros(3, dtype=np.float32), np.full(3, 0.5), 1e-2)
    x, y = points[0].T
    assert len(x) == 3**7 and x.min() >= 0 and (x + y).max() <= 1
    assert not ((x < 0.49) & (y < 0.49) & (x + y > 0.51)).any()
