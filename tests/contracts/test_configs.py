"""Every YAML in configs/ parses, builds without memory, and keeps the contracts at its own sizes."""

from pathlib import Path

import pytest
import torch

from genlab import config as configs
from genlab.evaluation.published import find_protocol

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
GENERATORS = [file for file in FILES if not configs.is_tokenizer(configs.read(file))]
TOKENIZERS = [file for file in FILES if file not in GENERATORS]
PARAMETERS = {  # as published, with 1000 classes; tokenizers with their codebooks
    "imagenet256/meanflow_xl_2": 676_440_592,
    "imagenet256/shortcut_xl_2": 676_440_592,
    "imagenet256/meanflow_b_4": 131_165_248,
    "imagenet256/imf_xl_2": 711_113_760,
    "imagenet256/enat_l": 565_904_385,
    "imagenet512/enat_l": 566_690_817,
    "imagenet256/maskgit_vqgan": 54_515_587,
    "imagenet256/dit_xl_2": 675.13e6,
    "imagenet256/sit_xl_2": 675.13e6,
    "imagenet256/dimr_xl_2r": 505_046_408,
    "imagenet256/dimr_g_2r": 1_056_352_904,
    "imagenet256/fitv2_xl_2": 671_045_776,
    "imagenet256/fitv2_3b": 2_971_928_080,
    "imagenet256/arflow_xl_2": 712.45e6,
    "imagenet256/lightningdit_xl_1": 675_256_736,
    "imagenet256/var_d16": 310.3e6,
    "imagenet256/var_d30": 2010.0e6,
    "imagenet256/flexvar_d24": 1041.3e6,
    "imagenet256/mvar_d24": 1550.1e6,
    "imagenet256/xar_b": 172.64e6,
    "imagenet256/xar_l": 608.40e6,
    "imagenet256/xar_h": 1186.02e6,
    "imagenet64/edm_adm": 295.90e6,
    "imagenet512/var_d36": 2353.9e6,
    "imagenet512/edm2_s": 280.2e6,
    "imagenet512/dit_xl_2": 675.13e6,
    "imagenet512/sit_xl_2": 675.13e6,
    "imagenet512/dimr_xl_3r": 525_027_372,
    "imagenet256/kl_16": 66_456_019,
    "imagenet256/vqgan_f16": 76.1e6,
    "imagenet256/llamagen_vq16": 71.9e6,
    "imagenet256/llamagen_vq8": 70.1e6,
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Recipes name others by their paths from here."""
    monkeypatch.chdir(ROOT)


def name(file: Path) -> str:
    return "/".join(file.with_suffix("").parts[-2:])


@pytest.mark.parametrize("file", GENERATORS, ids=name)
def test_generator_builds_on_the_meta_device(file):
    config = configs.load(file)
    spec = config.tokenizer.latent_spec(config.data.size)
    assert spec.kind in config.process.latents
    with torch.device("meta"):
        network = config.network.build(spec, 10)
        if spec.kind == "continuous":  # a denoiser
            out = network(torch.zeros(2, *spec.shape), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
            assert out.shape[0] == 2 and out.shape[2:] == torch.Size(spec.grid)
    assert network.null_label == 10
    assert type(config.sampling) is config.process.Sampling


@pytest.mark.parametrize("file", TOKENIZERS, ids=name)
def test_tokenizer_builds_on_the_meta_device(file):
    config = configs.load_run(file)
    size = config.data.size
    with torch.device("meta"):
        tokenizer = config.tokenizer.build(size)
        latents = tokenizer.features if hasattr(tokenizer, "features") else tokenizer.encode
        maps = latents(torch.zeros(2, 3, size, size))
    assert maps.shape[2:] == torch.Size(tokenizer.spec.grid)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_expected_scores_belong_to_protocols(file):
    for score in configs.load_run(file).expected:
        find_protocol(score.protocol)


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_number_of_parameters_is_the_published_one(recipe):
    config = configs.load_run(ROOT / "configs" / f"{recipe}.yaml")
    with torch.device("meta"):
        if isinstance(config, configs.TokenizerRunConfig):
            network = config.tokenizer.build(config.data.size)
        else:
            network = config.network.build(config.tokenizer.latent_spec(config.data.size), 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(PARAMETERS[recipe], rel=1e-3)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_config_begins_with_a_comment_that_says_what_it_is(file):
    assert file.read_text().startswith("# ")
