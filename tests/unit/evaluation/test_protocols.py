"""Protocols as data, expectations, and intervals that cover what they promise."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genlab.commands.targets import _published_settings
from genlab.core.errors import ConfigError
from genlab.evaluation.expected import check
from genlab.evaluation.frechet import Gaussian, frechet_distance
from genlab.evaluation.intervals import auroc_interval, frechet_halfwidth, share_interval
from genlab.evaluation.metrics import METRICS, Request, parse_requests
from genlab.evaluation.protocols import ExpectedScore, Protocol
from genlab.evaluation.published import PROTOCOLS, find_protocol
from genlab.evaluation.quantise import Rounding
from genlab.evaluation.repeats import over_seeds
from genlab.evaluation.scores import Score
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.vp_sampling import VpSampling


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


@pytest.mark.parametrize(
    ("paper", "settings"),
    [("dit", DiffusionSampling), ("sit", FlowSampling), ("fitv2", FlowSampling), ("dimr", VpSampling)],
)
@pytest.mark.parametrize("size", [256, 512])
def test_published_settings_are_those_of_the_papers_process(paper, settings, size):
    """Each key and value is one that the process knows; of systems without a process, the values are data."""
    protocol = find_protocol(f"{paper}-imagenet{size}")
    assert protocol.sampling.keys() <= settings.model_fields.keys()
    made = settings.model_validate(protocol.sampling)
    assert made.model_dump(include=set(protocol.sampling)) == protocol.sampling
    applied, ignored = _published_settings(settings(), protocol)
    assert applied == made and not ignored


def test_settings_of_another_process_are_left_alone():
    applied, (note,) = _published_settings(FlowSampling(), find_protocol("dit-imagenet256"))
    assert applied == FlowSampling() and "its own apply" in note
    applied, notes = _published_settings(FlowSampling(), find_protocol("var-imagenet256"))
    assert applied.guidance == 2.5 and len(notes) == 2


def test_every_paper_states_its_settings():
    for name, protocol in PROTOCOLS.items():
        assert protocol.sampling or "imagenet" not in name or name.startswith(("adm-", "edm-")), name
    assert find_protocol("enat-imagenet512").sampling["guidance"] == 4.5


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


def test_an_interval_over_seeds_covers_its_mean_and_keeps_the_values():
    generator = np.random.default_rng(0)
    covered = 0
    for draw in generator.normal(5.0, 1.0, (400, 3)):
        (score,) = over_seeds([[Score("fid", "fid", value, (4.0, 6.0))] for value in draw], range(3))
        covered += score.interval[0] <= 5.0 <= score.interval[1]
        assert score.value == pytest.approx(draw.mean()) and score.detail["values"] == pytest.approx(draw.tolist())
    assert 0.92 < covered / 400 < 0.98
    one = [Score("fid", "fid", 1.0, (0.5, 1.5))]
    assert over_seeds([one], [0]) == one
    table = [[Score("a", "class_accuracy", v, None, {}, {0: v})] for v in (0.25, 0.75)]
    (merged,) = over_seeds([table[0], [*table[1], *one]], [3, 4])
    assert merged.per_class == {0: 0.5} and merged.interval[0] == 0.0 and merged.interval[1] == 1.0
    assert merged.detail["seeds"] == [3, 4]


def test_the_auroc_interval_covers_repeated_draws():
    generator = np.random.default_rng(0)
    values = [(generator.normal(1, 1, (80, 1)) > generator.normal(0, 1, 120)).mean() for _ in range(200)]
    low, high = auroc_interval(float(np.mean(values)), 80, 120)
    assert 0.85 < (high - low) / (2 * 1.96 * np.std(values)) < 1.2
