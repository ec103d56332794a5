"""One pass: the same numbers however it is cut up, interrupted or shared out."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from genlab.core.errors import DataError
from genlab.core.public_weights import FoundWeights
from genlab.evaluation.asks import Ask
from genlab.evaluation.blocks import BLOCK
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.frechet import Gaussian, frechet_distance
from genlab.evaluation.in_training import evaluate_in_training
from genlab.evaluation.inception_score import inception_score
from genlab.evaluation.metrics import Need
from genlab.evaluation.progress import Progress
from genlab.evaluation.protocols import EvaluationSettings
from genlab.evaluation.session import Session
from genlab.evaluation.sources import Part, ScoredImages

ALL = frozenset({Need.MOMENTS, Need.FEATURES, Need.LOGITS})
STREAMED = frozenset({Need.MOMENTS, Need.LOGITS})
COUNT = 2100  # more than are kept whole without need


class Small(Extractor):
    """A fixed random network that is quick and depends on every pixel."""

    family = "small"
    dimensions: ClassVar = {"pool": 12, "logits": 5}
    feature_layer = "pool"
    logits_layer = "logits"
    resize = "none"

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(3 * 8 * 8, 12), nn.Linear(12, 5))
        super().__init__(network, FoundWeights(Path(), "", official=True))

    def prepare(self, images):
        return images.flatten(1).float() / 255

    def features(self, inputs):
        pool = self.network[0](inputs).tanh()
        return {"pool": pool, "logits": self.network[1](pool) * 3}


class Images(ScoredImages):
    """Random images, handed out in parts of `batch`; optionally fails on the way."""

    def __init__(self, batch=50, fail_at=None, count=COUNT):
        super().__init__(count, 8, [str(k) for k in range(10)])
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        self.batch, self.fail_at, self.given = batch, fail_at, 0

    def parts(self, index):
        for start in range(0, len(index), self.batch):
            part = list(index[start : start + self.batch])
            if self.fail_at is not None and max(part) >= self.fail_at:
                raise DataError("stopped here")
            self.given += len(part)
            yield Part(part, self.images[part], torch.tensor(part) % 10)

    def describe(self):
        return {"kind": "test"}


class Share:
    """One of several processes, run one after the other."""

    def __init__(self, rank, world):
        self.process_index, self.num_processes = rank, world

    def wait_for_everyone(self):
        pass


def run(source, needs=ALL, progress=None, share=None, save_every=10**9, **more):
    session = Session(source, [Ask(Small(), needs)], share, progress, save_every=save_every, **more)
    return session.run()


def numbers(result):
    collected = result.collected["small"]
    layer = collected.layers["pool"]
    probe = Gaussian.from_features(torch.randn(100, 12, generator=torch.Generator().manual_seed(5)))
    return torch.tensor(
        [frechet_distance(probe, layer.gaussian), collected.inception.score().mean], dtype=torch.float64
    )


@pytest.mark.parametrize("needs", [ALL, STREAMED])
def test_the_pass_gives_what_all_features_at_once_give(needs):
    source = Images()
    found = run(source, needs).collected["small"]
    extractor = Small()
    extractor.layers = ("pool", "logits")
    features = extractor(source.images)
    expected = Gaussian.from_features(features["pool"])
    assert torch.allclose(found.layers["pool"].gaussian.mean, expected.mean, atol=1e-6)
    score = inception_score(features["logits"]).mean
    assert found.inception.score().mean == pytest.approx(score, rel=1e-5)
    assert torch.equal(found.labels, torch.arange(COUNT) % 10)
    assert (found.layers["pool"].moments is None) == (needs is ALL)
    if needs is ALL:
        assert torch.allclose(found.layers["pool"].rows, features["pool"], atol=1e-5)


@pytest.mark.parametrize("batch", [7, 64, 2100])
@pytest.mark.parametrize("needs", [ALL, STREAMED])
def test_the_batch_does_not_matter(batch, needs):
    assert torch.equal(numbers(run(Images(batch), needs)), numbers(run(Images(50), needs)))


@pytest.mark.parametrize("needs", [ALL, STREAMED])
def test_interrupted_and_resumed(tmp_path, needs):
    straight = numbers(run(Images(), needs))
    with pytest.raises(DataError, match="stopped here"):
        run(Images(fail_at=300), needs, Progress(tmp_path, {"a": 1}), save_every=100)
    source = Images()
    result = run(source, needs, Progress(tmp_path, {"a": 1}))
    assert result.resumed == 300 // BLOCK * BLOCK and source.given == COUNT - result.resumed
    assert torch.equal(numbers(result), straight)
    assert torch.equal(result.collected["small"].pictures, run(Images(), needs).collected["small"].pictures)


def test_resumed_by_fewer_processes(tmp_path):
    """Shares that ran, one after the other, as two of three processes would; then one process joins it all."""
    straight = numbers(run(Images(), STREAMED))
    for rank in range(3):
        with pytest.raises(DataError):
            run(Images(fail_at=1500), STREAMED, Progress(tmp_path, {}, rank, 3), Share(rank, 3), save_every=64)
        if rank == 1:
            break  # the third was killed before it saved anything
    source = Images()
    result = run(source, STREAMED, Progress(tmp_path, {}))
    assert result.resumed > 0 and source.given == COUNT - result.resumed
    assert torch.allclose(numbers(result), straight, rtol=1e-9, atol=0)


def test_a_state_that_another_contains_is_ignored(tmp_path):
    with pytest.raises(DataError):
        run(Images(fail_at=300), STREAMED, Progress(tmp_path, {}), save_every=64)
    (old,) = tmp_path.glob("state-*")
    copy = old.read_bytes()
    with pytest.raises(DataError):
        run(Images(fail_at=500), STREAMED, Progress(tmp_path, {}), save_every=64)
    old.write_bytes(copy)  # killed between writing the new state and deleting the old one
    result = run(Images(), STREAMED, Progress(tmp_path, {}))
    assert torch.allclose(numbers(result), numbers(run(Images(), STREAMED)), rtol=1e-9, atol=0)


def test_a_damaged_state_is_done_again(tmp_path):
    with pytest.raises(DataError):
        run(Images(fail_at=300), STREAMED, Progress(tmp_path, {}), save_every=64)
    (state,) = tmp_path.glob("state-*")
    state.write_bytes(state.read_bytes()[:200])
    result = run(Images(), STREAMED, Progress(tmp_path, {}))
    assert result.resumed == 0 and torch.equal(numbers(result), numbers(run(Images(), STREAMED)))


def test_progress_of_another_evaluation_is_refused(tmp_path):
    Progress(tmp_path / "p", {"seed": 0, "n": 5})
    with pytest.raises(DataError, match=r"other settings \(seed\)"):
        Progress(tmp_path / "p", {"seed": 1, "n": 5})


def test_features_that_are_not_finite_name_the_image():
    class Broken(Small):
        def features(self, inputs):
            found = super().features(inputs)
            found["pool"][inputs.sum(1) == inputs.sum(1).max()] = torch.nan
            return found

    with pytest.raises(DataError, match=r"image \d+: its features \(pool\)"):
        Session(Images(), [Ask(Broken(), ALL)]).run()


def test_fewer_images_than_splits_keep_the_other_scores():
    found = run(Images(count=6)).collected["small"]
    assert found.inception is None and "6 images" in found.problems[0]
    assert found.layers["pool"].gaussian.mean.shape == (12,)


def test_times_are_kept_apart_and_pictures_are_few():
    result = run(Images())
    assert result.times.extraction > 0 and result.times.sampling > 0 and result.times.statistics > 0
    assert result.collected["small"].pictures.shape == (64, 3, 8, 8)


def test_scores_while_training():
    """The hook's function: nothing on disk, scores on the main process alone."""
    source = Images(count=200)

    def draw(labels):
        assert labels == [i % 10 for i in range(100)]
        return lambda index: ((part.index, part.images) for part in source.parts(index))

    extractor = Small()
    reference = run(source, frozenset({Need.MOMENTS, Need.FEATURES})).collected["small"]
    settings = EvaluationSettings(samples=100, extractor="small", metrics=("fid", "precision", "recall"))
    arguments = (draw, 10, [str(k) for k in range(10)], 8, reference, extractor, settings)
    found = evaluate_in_training(*arguments, Share(0, 1))
    assert found.keys() == {"eval/fd_small", "eval/precision_small", "eval/recall_small"}
    assert found["eval/fd_small"] < 0.5 and found["eval/precision_small"] == 1.0
    assert evaluate_in_training(*arguments, Share(1, 2)) == {}
