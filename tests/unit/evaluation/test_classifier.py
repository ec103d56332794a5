"""Classification accuracy score, the digits judge and the check for copies."""

import math

import pytest
import torch
from torch import nn

from genlab.core.errors import DataError
from genlab.data.digits import Digits
from genlab.evaluation.classifier import (
    DigitsClassifier,
    Labelled,
    Recipe,
    SmallConvNet,
    accuracy,
    copy_check,
    epoch_orders,
    fit,
    nearest_distances,
    usefulness,
)


def clusters(count: int, seed: int, spread: float) -> Labelled:
    """Three Gaussian clouds in the plane, whose width is `spread`."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return Labelled(centres[labels] + spread * torch.randn(count, 2, generator=random), labels)


def test_usefulness_of_good_and_of_mislabelled_samples():
    real, held_out = clusters(300, 0, 0.7), clusters(300, 1, 0.7)
    recipe = Recipe.cosine(epochs=5, peak=0.1, batch=30)
    good = usefulness(lambda: nn.Linear(2, 3), clusters(300, 2, 0.7), real, held_out, recipe)
    assert good.real.top1 > 90 and good.ratio == pytest.approx(1.0, abs=0.05)
    wrong = clusters(300, 2, 0.7)._replace(labels=(torch.arange(300) + 1) % 3)
    bad = usefulness(lambda: nn.Linear(2, 3), wrong, real, held_out, recipe)
    assert bad.cas.top1 < 20 and bad.gan_test.top1 < 20 and bad.real.top1 == good.real.top1


def test_training_is_a_function_of_the_seed_and_leaves_the_global_stream_alone():
    real = clusters(60, 0, 0.7)
    recipe = Recipe(lr=(0.1, 0.01), batch=16)
    state = torch.get_rng_state()
    runs = [usefulness(lambda: nn.Linear(2, 3), real, real, real, recipe, seed=4) for _ in range(2)]
    assert runs[0].cas.top1 == runs[1].cas.top1
    assert torch.equal(torch.get_rng_state(), state)


def test_accuracy_of_few_classes_and_of_absent_ones():
    found = accuracy(torch.eye(4)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    assert found.top1 == pytest.approx(200 / 3) and math.isnan(found.top5)
    assert found.per_class[:3].tolist() == [1.0, 1.0, 0.0] and found.per_class[3].isnan()


def test_an_order_that_does_not_fit_the_recipe():
    with pytest.raises(DataError, match="3 epochs for a recipe of 1"):
        fit(nn.Linear(2, 3), clusters(9, 0, 1.0), epoch_orders(9, 3, 0), Recipe(lr=(0.1,)))


def test_the_convnet_takes_digits():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    network = SmallConvNet(10)
    assert network(images.float()).shape == (6, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) < 1e5


@pytest.mark.parametrize("size", [8, 32])
def test_the_digits_judge_knows_held_out_digits(size):
    train, held_out = (Digits(size=size, held_out=0.2).build(split) for split in ("train", "test"))
    judge = DigitsClassifier().fit(*train.fetch(range(len(train))))
    images, labels = held_out.fetch(range(len(held_out)))
    total, per_class = judge.class_accuracy(images, labels)
    assert total > 0.98 and per_class.shape == (10,) and per_class.min() > 0.93
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    assert judge.class_accuracy(noise, labels)[0] < 0.3


def test_nearest_distances_in_tiles():
    random = torch.Generator().manual_seed(0)
    queries, references = torch.randn(23, 2, 3, generator=random), torch.randn(31, 2, 3, generator=random)
    expected = torch.cdist(queries.flatten(1).double(), references.flatten(1).double()).min(1).values
    torch.testing.assert_close(nearest_distances(queries, references, tile=7), expected)
    assert (nearest_distances(references + 1e4, references + 1e4, tile=7) == 0).all()
    with pytest.raises(DataError, match="no distances"):
        nearest_distances(queries, references[:0])


def test_copies_are_seen():
    training, held_out, fresh = (
        torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
    )
    assert copy_check(fresh, training, held_out).suspicious < 0.05
    half = torch.cat([fresh[:100], training[:100]])
    found = copy_check(half, training, held_out)
    assert 0.5 <= found.suspicious < 0.55
    assert copy_check(training, training, held_out).ratio == 0.0
