"""The inception score under every split rule, streamed and at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.errors import DataError
from genlab.evaluation.inception_score import (
    ADM,
    DGM_EVAL,
    STUDIOGAN,
    TITOK,
    TORCH_FIDELITY,
    InceptionScoreStream,
    SplitRule,
    inception_score,
)

CHUNKS = SplitRule(splits=None, chunk=7, shuffle_seed=None)


@given(
    n=st.integers(10, 60), batch=st.integers(1, 20), seed=st.integers(0, 9999),
    rule=st.sampled_from([ADM, DGM_EVAL, STUDIOGAN, TITOK, TORCH_FIDELITY, CHUNKS]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_streaming_in_any_order_equals_batch(n, batch, seed, rule):
    rng = torch.Generator().manual_seed(seed)
    logits, order = 3 * torch.randn(n, 8, generator=rng), torch.randperm(n, generator=rng)
    stream = InceptionScoreStream(n, 8, rule)
    for part in order.split(batch):
        stream.update(logits[part], part)
    whole = inception_score(logits, rule)
    torch.testing.assert_close(stream.score().splits, whole.splits, rtol=1e-6 if rule is ADM else 1e-12, atol=0)


def test_known_values():
    certain = 1e4 * torch.eye(10).repeat(10, 1)  # ten classes, each surely: the score is 10, underflow or not
    assert inception_score(certain, STUDIOGAN).mean == pytest.approx(10, rel=1e-12)
    assert inception_score(torch.zeros(20, 5)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(certain, STUDIOGAN).std is None


def test_rules_deal_images_out():
    assert CHUNKS.assign(16).bincount().tolist() == [7, 7, 2]
    assert SplitRule(splits=3, shuffle_seed=None).assign(10).tolist() == [0] * 3 + [1] * 3 + [2] * 4
    dropped = SplitRule(splits=3, tail="drop", shuffle_seed=None).assign(10)
    assert dropped.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [-1]
    assert TORCH_FIDELITY.assign(100).bincount().tolist() == [10] * 10


def test_refusals():
    with pytest.raises(DataError, match="9 images"):
        inception_score(torch.zeros(9, 4))
    with pytest.raises(DataError, match="rows 2"):
        inception_score(torch.zeros(12, 4).index_fill(0, torch.tensor([2]), float("nan")))
    stream = InceptionScoreStream(10, 4)
    stream.update(torch.zeros(9, 4), torch.arange(9))
    with pytest.raises(DataError, match="9 images came in"):
        stream.score()
