"""Extractors: layers, names, refusals, and weights loaded the real way from files made here."""

import dataclasses
import time

import pytest
import torch

from genlab.convert.golden_images import recipe_weights, write_inception
from genlab.core.errors import ConfigError, DataError, WeightsUnavailable
from genlab.core.public_weights import WeightsFile, sha256
from genlab.evaluation.extractors import load_extractor, metric_name
from genlab.evaluation.extractors.dinov2 import resize_positions
from genlab.evaluation.extractors.loading import NAMES

IMAGES = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("weights"), seed=3)


@pytest.fixture(scope="module")
def efflite0():
    return load_extractor("efflite0", layers=["pool", "logits"])


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_inception_from_a_file(inception_file):
    layers = ["pool", "logits_unbiased", "spatial"]
    extractor = load_extractor("inception", inception_file, layers=layers, allow_unofficial=True)
    features = extractor(IMAGES)
    assert {layer: tuple(value.shape) for layer, value in features.items()} == {
        "pool": (3, 2048),
        "logits_unbiased": (3, 1008),
        "spatial": (3, 2023),
    }
    assert extractor.name == f"inception_{extractor.checksum[:8]}" and not extractor.comparable_to_published
    alone = load_extractor("inception", inception_file, layers=["spatial"], allow_unofficial=True)(IMAGES)
    assert list(alone) == ["spatial"] and torch.equal(alone["spatial"], features["spatial"])


def test_inception_agrees_with_torch_fidelity(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    official = FeatureExtractorInceptionV3("x", ["2048", "logits"], feature_extractor_weights_path=str(inception_file))
    ours = load_extractor("inception", inception_file, layers=["pool", "logits"], allow_unofficial=True)(IMAGES)
    for got, expected in zip(ours.values(), official(IMAGES)):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_another_checksum_is_refused(inception_file):
    with pytest.raises(WeightsUnavailable, match=r"SHA-256 .*expected 6726825d"):
        load_extractor("inception", inception_file)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "efflite0"])
def test_offline_without_weights(name, no_cache):
    started = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"https://.*not cached.*PATH.*--extractor efflite0"):
        load_extractor(name)
    assert time.monotonic() - started < 20


def test_a_download_is_checked_and_kept_whole_or_not_at_all(no_cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    source = no_cache / "published.pth"
    torch.save({"weight": torch.ones(2)}, source)
    checkpoints = no_cache / "torch" / "hub" / "checkpoints"
    weights = WeightsFile("Test", "published.pth", source.as_uri(), sha256(source)[:8], 1)
    with pytest.raises(WeightsUnavailable, match="another checksum"):
        dataclasses.replace(weights, sha256="0000").locate()
    assert list(checkpoints.iterdir()) == []
    found = weights.locate()
    assert found.official and found.path == checkpoints / "published.pth"
    assert found.read()["weight"].tolist() == [1.0, 1.0]
    with pytest.raises(WeightsUnavailable, match="cannot be downloaded"):
        dataclasses.replace(weights, file="other.pth", url="http://127.0.0.1:9/other.pth").locate()


def test_weights_that_are_missing_or_no_weights(tmp_path):
    with pytest.raises(WeightsUnavailable, match="there is no file"):
        load_extractor("inception", tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(WeightsUnavailable, match="not a readable weights file"):
        load_extractor("inception", tmp_path / "text.pth", allow_unofficial=True)
    torch.save({"model": 1}, tmp_path / "model.pth")
    with pytest.raises(WeightsUnavailable, match="no plain state dict"):
        load_extractor("inception", tmp_path / "model.pth", allow_unofficial=True)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("inception", "dinov2", "clip", "efflite0"):
        with pytest.raises(WeightsUnavailable, match=r"other\.pth: (weights of another network|no DINOv2)"):
            load_extractor(name, tmp_path / "other.pth", allow_unofficial=True)


def test_a_cached_file_that_is_damaged(no_cache):
    cached = no_cache / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"truncated")
    with pytest.raises(WeightsUnavailable, match="delete it to download it again"):
        load_extractor("inception", allow_unofficial=True)


def test_unknown_names(tmp_path):
    with pytest.raises(ConfigError, match="did you mean inception"):
        load_extractor("inceptoin")
    with pytest.raises(DataError, match="has no layer pol; it has pool, logits"):
        load_extractor("efflite0", layers=["pol"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.float(), "float32: extractors take uint8"),
        (IMAGES.permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\)"),
        (IMAGES[:, :1], r"expand\(-1, 3, -1, -1\)"),
        (IMAGES[:, :2], "three channels"),
        (IMAGES[0], r"a batch \[B, 3, H, W\]"),
        (IMAGES[:0], "no image"),
    ],
)
def test_wrong_images_are_refused(efflite0, images, message):
    with pytest.raises(DataError, match=message):
        efflite0(images)


def test_features_do_not_depend_on_the_batch_or_on_train_mode(efflite0):
    whole = efflite0(IMAGES)["pool"]
    efflite0.train()
    assert not efflite0.training and not any(module.training for module in efflite0.modules())
    single = torch.cat([efflite0(image[None])["pool"] for image in IMAGES])
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-5)
    assert not whole.requires_grad and whole.dtype == torch.float32


def test_efflite0_says_what_it_is(efflite0):
    assert efflite0.describe()["comparable_to_published"] is False
    assert "NOT FID" in efflite0.banner


def test_strict_precision_is_full_and_restored(efflite0):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    seen = []
    hook = efflite0.network._conv_head.register_forward_hook(lambda *_: seen.append(matmul.fp32_precision))
    try:
        efflite0(IMAGES)
        assert seen == ["ieee"] and matmul.fp32_precision == "tf32"
    finally:
        hook.remove()
        matmul.fp32_precision = before


def test_metric_names():
    names = {metric: metric_name(metric, "inception") for metric in ("fid", "kid", "is", "sfid", "precision", "recall")}
    assert all(metric == name for metric, name in names.items())
    assert [metric_name(metric, "efflite0") for metric in ("fid", "kid", "is", "precision")] == [
        "fd_efflite0",
        "kd_efflite0",
        "is_efflite0",
        "precision_efflite0",
    ]
    assert metric_name("fid", "dinov2_edm2") == "fd_dinov2_edm2"
    assert metric_name("cmmd", "clip") == "cmmd" and metric_name("cmmd", "dinov2") == "cmmd_dinov2"
    assert metric_name("fid", "inception_ab12cd34") == "fd_inception_ab12cd34"


@pytest.fixture(scope="module")
def small_dinov2_file(tmp_path_factory):
    """A two-block ViT in the hub file's form, positions for 37 x 37 patches included."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=518, patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1.0, num_classes=0
    )
    path = tmp_path_factory.mktemp("dinov2") / "small.pth"
    torch.save(recipe_weights(network, 5) | {"mask_token": torch.zeros(1, 128)}, path)
    return path


def test_dinov2_from_a_file(small_dinov2_file):
    features = {}
    for name in ("dinov2", "dinov2_edm2", "dinov2_rigid"):
        extractor = load_extractor(name, small_dinov2_file, allow_unofficial=True)
        assert extractor.name == f"{name}_{extractor.checksum[:8]}"
        features[name] = extractor(IMAGES)["class_token"]
        assert features[name].shape == (3, 128)
    assert not torch.equal(features["dinov2"], features["dinov2_rigid"])
    torch.testing.assert_close(features["dinov2"], features["dinov2_edm2"], rtol=0, atol=0.2)  # rounding and clipping


def test_positions_are_resized_as_in_the_hub_code():
    positions = torch.randn(1, 1 + 37 * 37, 4, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, 16)
    assert resized.shape == (1, 257, 4)
    assert torch.equal(resized[:, 0], positions[:, 0])
    square = positions[:, 1:].view(1, 37, 37, 4).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(square, size=(16, 16), mode="bicubic").permute(0, 2, 3, 1).view(1, 256, 4)
    assert not torch.allclose(resized[:, 1:], plain, atol=1e-3)  # the offset of 0.1 shifts the sampling points
    assert resize_positions(positions, 37) is positions


def test_clip_from_a_folder(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, projection_dim=16, image_size=336, patch_size=56)
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path)
    extractor = load_extractor("clip", tmp_path, allow_unofficial=True)
    embedding = extractor(IMAGES)["embedding"]
    with torch.no_grad():
        expected = network(extractor.prepare(IMAGES)).image_embeds
    torch.testing.assert_close(embedding, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
