"""Protocols as data, expectations, and intervals that cover what they promise."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genlab.core.errors import ConfigError
from genlab.evaluation.expected import check
from genlab.evaluation.frechet import Gaussian, frechet_distance
from genlab.evaluation.intervals import frechet_halfwidth, share_interval
from genlab.evaluation.metrics import METRICS, Request, parse_requests
from genlab.evaluation.protocols import ExpectedScore, Protocol
from genlab.evaluation.published import PROTOCOLS, find_protocol
from genlab.evaluation.quantise import Rounding
from genlab.evaluation.scores import Score


def test_every_protocol_names_metrics_that_exist_and_agrees_with_its_name():
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.title
        assert parse_requests(protocol.metrics, protocol.extractor)
        if "imagenet" in name:
            assert name.endswith(str(protocol.image_size)) and protocol.reference and protocol.samples == 50_000
            assert protocol.reference_url.startswith("https://") and protocol.extractor == "inception"
        assert protocol.split_rule


def test_rows_of_the_table():
    assert find_protocol("dit-imagenet256").labels == "random"
    assert find_protocol("adm-imagenet256").split_rule.chunk == 5000
    assert find_protocol("mar-imagenet256").rounding is Rounding.HALF_EVEN
    assert find_protocol("mar-imagenet256").splits == "torch_fidelity"
    assert find_protocol("dimr-imagenet512").rounding is Rounding.SAVE_IMAGE
    assert find_protocol("dmd2-imagenet64").rounding is Rounding.TRUNCATE
    for paper in ("dit", "sit", "dimr", "var", "flexvar", "enat", "fitv2"):
        assert f"{paper}-imagenet256" in PROTOCOLS and f"{paper}-imagenet512" in PROTOCOLS
    assert {"xar-imagenet256", "mvar-imagenet256", "resgen-imagenet256", "msd-imagenet64"} <= PROTOCOLS.keys()


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean adm-imagenet256"):
        find_protocol("adm-imagenet-256")
    with pytest.raises(ConfigError, match="did you mean recall"):
        parse_requests(["recal"], "inception")
    with pytest.raises(ConfigError, match="at least one metric"):
        parse_requests([], "inception")
    with pytest.raises(ValidationError):
        Protocol(name="x", title="x", samples=0)


def test_requests():
    assert parse_requests(["fid", "recall@pixels", "fid"], "efflite0") == (
        Request("fid", "efflite0"),
        Request("recall", "pixels"),
    )
    assert all(metric.better in ("lower", "higher", "neither") for metric in METRICS.values())


def expected(value, tolerance=0.05):
    return ExpectedScore(protocol="p", metric="fid", value=value, source="table 1", tolerance=tolerance)


@pytest.mark.parametrize(
    ("found", "interval", "verdict"),
    [
        (2.27, None, "within noise"),
        (2.29, None, "within noise"),  # seeds move it more
        (2.35, None, "ok"),
        (2.60, None, "off"),
        (2.00, None, "off"),  # better than published is not reproduced either
        (2.60, (2.2, 3.0), "within noise"),
    ],
)
def test_verdicts(found, interval, verdict):
    (result,) = check([Score("fid", "fid", found, interval)], [expected(2.27)], "p")
    assert result.verdict == verdict and "2.27" in result.text
    assert check([], [expected(2.27)], "p")[0].verdict == "missing"
    assert check([], [expected(2.27)], "other") == []


@pytest.mark.parametrize(("n", "d", "widest"), [(40, 60, 1.5), (400, 12, 1.2)])
def test_the_frechet_interval_covers_repeated_draws(n, d, widest):
    """Its width is that of the spread over fresh sets; below full rank it is rather wider."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.5, 2, d)
    reference = Gaussian.from_features(torch.randn(500, d, generator=generator))
    draws = [torch.randn(n, d, generator=generator) * scale + 0.3 for _ in range(200)]
    values = np.array([frechet_distance(reference, Gaussian.from_features(draw)) for draw in draws])
    widths = np.array([frechet_halfwidth(reference, draw, n) for draw in draws])
    assert 0.85 < np.median(widths) / (1.96 * values.std()) < widest


def test_share_intervals():
    low, high = share_interval(0.5, 100)
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert share_interval(1.0, 50)[1] == 1.0 and share_interval(0.0, 50)[0] == 0.0
