"""Validation errors speak of keys and values, not of pydantic's unions, and know what people write instead."""

from pathlib import Path

import pytest

from genlab import config as configs
from genlab.core.errors import ConfigError
from genlab.processes.few_step import FewStepSampling
from genlab.processes.flow import FlowSampling
from genlab.processes.mean_flow import MeanFlowSampling

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("digits/dmd2_flow", "process.levels=0", "process.levels: got 0 (allowed: greater than 0 or a list)"),
        ("digits/dmd2_flow", "process.levels=x", "process.levels: got 'x' (allowed: a valid integer or a list)"),
        ("digits/dmd2_flow", "process.levels=[0, b]", "process.levels.1: got 'b' (allowed: a valid number)"),
        ("imagenet256/enat_l", "process.schedule=cosin", "process.schedule: got 'cosin'; did you mean 'cosine'?"),
        ("digits/dit_flow", "process.path=x", "process.path: got 'x' (allowed: 'linear', 'gvp' or 'vp')"),
    ],
)
def test_a_value_of_several_kinds_is_one_error(recipe, override, message):
    with pytest.raises(ConfigError) as caught:
        configs.load(CONFIGS / f"{recipe}.yaml", [override])
    (line,) = str(caught.value).splitlines()
    assert message in line and "more)" not in line


@pytest.mark.parametrize(
    ("settings", "override", "message"),
    [
        (FlowSampling, "sampling.steps=8", "write steps=8$"),
        (FlowSampling, "sampling.cache.kind=none", "write cache.kind=none$"),
        (FlowSampling, "guidanc=8", "guidanc: unknown key; did you mean 'guidance'"),
        (FewStepSampling, "guidance=2", "this generator has no guidance: a student has learnt its teacher's"),
        (MeanFlowSampling, "guidance=2", "has no guidance: .* leave it out"),
    ],
)
def test_sampling_settings_that_are_not_there(settings, override, message):
    with pytest.raises(ConfigError, match=message):
        configs.override_sampling(settings(), [override])
