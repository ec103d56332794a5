"""RIGID scores and the measures of a detector."""

import pytest
import torch

from genlab.convert.golden_images import recipe_weights
from genlab.core.errors import DataError
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.rigid import RigidSettings, detection, rigid_scores, similarity

IMAGES = torch.randint(0, 256, (4, 3, 30, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=518, patch_size=14, embed_dim=64, depth=1, num_heads=1, init_values=1.0, num_classes=0
    )
    path = tmp_path_factory.mktemp("rigid") / "small.pth"
    torch.save(recipe_weights(network, 5), path)
    return path


def test_scores_belong_to_the_image_not_to_the_batch(weights):
    extractor = load_extractor("dinov2_rigid", weights, allow_unofficial=True)
    settings = RigidSettings(draws=2, blur=0.8)
    identities = torch.tensor([7, 3, 11, 2])
    whole = rigid_scores(extractor, IMAGES, identities, settings)
    assert whole.shape == (4,) and (whole < 1.0).all()
    order = [2, 0]
    torch.testing.assert_close(
        1 - rigid_scores(extractor, IMAGES[order], identities[order], settings), 1 - whole[order], rtol=1e-3, atol=1e-7
    )
    noise_alone = [rigid_scores(extractor, IMAGES, identities, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*noise_alone)


def test_more_noise_moves_features_more(weights):
    extractor = load_extractor("dinov2_rigid", weights, allow_unofficial=True)
    scores = [
        rigid_scores(extractor, IMAGES, torch.arange(4), RigidSettings(strength=strength)).mean()
        for strength in (0.0, 0.01, 0.1)
    ]
    assert scores[0] == 1.0 and scores[0] > scores[1] > scores[2]


def test_half_precision_is_refused(weights):
    extractor = load_extractor("dinov2_rigid", weights, precision="bf16", allow_unofficial=True)
    with pytest.raises(DataError, match="drown in bf16"):
        rigid_scores(extractor, IMAGES, torch.arange(4))


def test_similarity_keeps_small_differences():
    vector = torch.ones(1, 1000, dtype=torch.float64)
    turned = vector.clone()
    turned[0, 0] += 1e-5
    expected = 1e-10 * (1 - 1 / 1000) / 1000 / 2
    assert 1 - similarity(vector, turned).item() == pytest.approx(expected, abs=1e-16)


def test_detection_of_separable_and_of_inverted_scores():
    real, fake = torch.linspace(0.9, 1.0, 50), torch.linspace(0.5, 0.8, 40)
    good = detection(real, fake)
    assert good.auroc == 1.0 and good.fake_detected == 1.0 and good.fpr_at_tpr95 == 0.0 and not good.inverted
    assert good.real_rejected == pytest.approx(0.06)
    assert detection(fake, real).inverted
    with pytest.raises(DataError, match="finite scores of both sets"):
        detection(real, fake[:0])
    with pytest.raises(DataError, match="finite scores"):
        detection(real, torch.tensor([float("nan")]))
