"""CAS and RIGID as metrics that one can ask for, and one image or an empty set as a clear answer."""

import pytest
import torch
from PIL import Image

from genlab.core.errors import ConfigError, DataError
from genlab.data.digits import Digits
from genlab.evaluation.asks import Ask
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.metrics import Need, Request, parse_requests
from genlab.evaluation.picture_folder import PictureFolder
from genlab.evaluation.pixels import PixelFeatures
from genlab.evaluation.rigid import rigid_scores
from genlab.evaluation.rigid_features import RigidFeatures, load_rigid
from genlab.evaluation.scores import Comparison, Rules, compute
from genlab.evaluation.session import Session
from genlab.evaluation.sources import DataImages, GeneratedImages, Subset

FEATURES = frozenset({Need.FEATURES})


def digits(count, seed=0):
    return Subset(DataImages(Digits(size=8).build(), "digits"), count, seed)


def comparison(extractor, ours, theirs, digits=False):
    sides = [Session(source, [Ask(extractor, FEATURES)]).run().collected[extractor.name] for source in (ours, theirs)]
    return Comparison(extractor, *sides, Rules(), digits)


def noise(count):
    """Images that show nothing, with labels."""
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = [str(label) for label in range(10)]
    return GeneratedImages(
        lambda index: iter([(list(index), images[list(index)])]), [i % 10 for i in range(count)], names, 8, {}
    )


def test_cas_tells_digits_from_noise():
    (good,), problems = compute(comparison(PixelFeatures(), digits(250), digits(200, seed=1)), ["cas"])
    (bad,), _ = compute(comparison(PixelFeatures(), noise(250), digits(200, seed=1)), ["cas"])
    assert good.name == "cas" and not problems
    assert good.value > 0.8 > 0.4 > bad.value and good.detail["real_data"] > 0.8
    assert good.interval[0] < good.value <= good.interval[1] and good.detail["tested_on"] == 40
    assert set(good.per_class) == set(range(10)) and good.detail["seconds"] > 0


def test_cas_on_other_features_is_called_a_probe_and_large_pixels_are_refused():
    class Probe(PixelFeatures):
        family = "other"

    (score,), _ = compute(comparison(Probe(), digits(300), digits(300, seed=1)), ["cas"])
    assert score.name == "cas_probe_other" and "proxy" in score.detail["classifier"] and score.value > 0.7
    large = DataImages(Digits(size=96).build(), "digits")
    _, (problem,) = compute(comparison(PixelFeatures(), Subset(large, 20, 0), Subset(large, 20, 1)), ["cas"])
    assert "up to 64 pixels wide" in problem and "cas@inception" in problem


@pytest.fixture(scope="module")
def offline():
    return load_rigid("rigid_efflite0")


def test_rigid_is_named_by_its_encoder(offline):
    assert parse_requests(["fid", "rigid"], "efflite0")[1] == Request("rigid", "rigid_efflite0")
    assert parse_requests(["rigid"], "inception") == parse_requests(["rigid@dinov2"], "efflite0")
    assert (
        isinstance(offline, RigidFeatures) and offline.name == "rigid_efflite0" and "not the paper's" in offline.banner
    )
    with pytest.raises(ConfigError, match="there are dinov2 and efflite0"):
        load_rigid("rigid_pixels")


def test_rigid_through_the_pass_is_rigid(offline):
    source = digits(12)
    images = torch.cat([part.images for part in source.parts(range(12))])
    movement = offline(images)["movement"]
    assert torch.allclose(offline(images.flip(0))["movement"].flip(0), movement, rtol=1e-3)  # noise goes with content
    again = 1 - rigid_scores(
        load_extractor("efflite0"), images, torch.arange(12)
    )  # other noise, of about the same size
    assert movement.mean().item() == pytest.approx(again.mean().item(), rel=0.3)
    (score,), _ = compute(comparison(offline, noise(12), source), ["rigid"])
    assert score.name == "rigid_efflite0" and 0 <= score.value <= 1
    assert score.detail["inverted"] == (score.value < 0.5) and score.interval[0] <= score.value <= score.interval[1]
    _, (problem,) = compute(comparison(PixelFeatures(), noise(12), source), ["rigid"])
    assert "encoders of its own" in problem


def test_one_image_gives_clear_problems_and_no_number(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    found, problems = compute(
        comparison(PixelFeatures(), PictureFolder(tmp_path), digits(20)), ["fid", "kid", "recall"]
    )
    assert not found and len(problems) == 3
    assert all("not computed" in problem for problem in problems), problems
    with pytest.raises(DataError, match="lower --samples"):
        Subset(PictureFolder(tmp_path), 2, 0)
