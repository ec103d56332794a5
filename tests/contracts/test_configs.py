"""Every YAML in configs/ parses, builds without memory, and keeps the contracts at its own sizes."""

from pathlib import Path

import pytest
import torch

from genlab import config as configs

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-2:]))
def test_config_builds_on_the_meta_device(file):
    config = configs.load(file)
    spec = config.tokenizer.latent_spec(config.data.size)
    assert spec.kind in config.process.latents
    with torch.device("meta"):
        network = config.network.build(spec, 10)
        label = torch.zeros(2, dtype=torch.int64)
        out = network(torch.zeros(2, *spec.shape), torch.zeros(2), label)
    assert out.shape[0] == 2 and out.shape[2:] == torch.Size(spec.grid)
    assert network.null_label == 10
    assert type(config.sampling) is config.process.Sampling


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-2:]))
def test_config_begins_with_a_comment_that_says_what_it_is(file):
    assert file.read_text().startswith("# ")
