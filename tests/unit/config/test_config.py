"""Configs: strict, frozen, helpful."""

from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from genlab import config as configs
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings

DIGITS = Path("configs/digits/dit_flow.yaml")


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])


def broken(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configs.load(DIGITS, overrides)
    return str(caught.value)


def test_overrides_change_what_they_name_and_nothing_else():
    plain, changed = configs.load(DIGITS), configs.load(DIGITS, ["training.lr=3e-4", "network.depth=6"])
    assert changed.training.lr == 3e-4 and changed.network.depth == 6
    assert changed.model_copy(update={"training": plain.training, "network": plain.network}) == plain


def test_what_is_dumped_reads_back_equal(tmp_path):
    config = configs.load(DIGITS)
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config))
    assert configs.load(file) == config


def test_configs_are_frozen():
    with pytest.raises(ValidationError):
        configs.load(DIGITS).training.lr = 1.0


@pytest.mark.parametrize(
    "override, parts",
    [
        ("network.depht=4", ["network.depht", "unknown key", "'depth'"]),
        ("trainning.lr=1", ["trainning", "unknown key", "'training'"]),
        ("network.name=ditt", ["network.name", "'ditt'", "did you mean 'dit'"]),
        ("data.name=digit", ["data.name", "did you mean 'digits'"]),
        ("process.path=linera", ["process.path", "did you mean 'linear'"]),
        ("training.batch=many", ["training.batch", "'many'"]),
        ('training.batch="64"', ["training.batch", "'64'", "integer"]),
        ("training.lr=-1", ["training.lr", "-1", "greater than 0"]),
        ("training.ema=[0.9, 0.9]", ["ema", "twice"]),
        ("training.images=5", ["less than one batch"]),
        ("sampling.stepz=4", ["sampling.stepz", "'steps'"]),
        ("sampling.guidance_interval=[0.9, 0.1]", ["guidance_interval", "up"]),
        ("network.patch=3", ["patch", "3"]),
        ("network.heads=5", ["heads", "5"]),
        ("nonsense", ["section.key=value"]),
        ("seed.x=1", ["seed"]),
        ("name=../escape", ["name"]),
        ("training.optimizer={name: adanw}", ["optimizer.name", "did you mean 'adamw'"]),
    ],
)
def test_mistakes_are_named_with_what_was_probably_meant(override, parts):
    message = broken(override)
    assert all(part in message for part in parts), message
    assert message.count("\n") <= 1


def test_a_missing_config_suggests_a_near_one():
    with pytest.raises(ConfigError, match=r"did you mean 'configs/digits/dit_flow\.yaml'"):
        configs.load("configs/digits/dit_flwo.yaml")


@pytest.mark.parametrize(
    "text, part",
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "mapping"),
        ("", "mapping"),
        ("data: {name: digits}\ndata: {name: photos}", "twice"),
        ("1: 2", "no word"),
    ],
)
def test_bad_yaml_is_named(tmp_path, text, part):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part):
        configs.load(file)


def test_numbers_are_numbers_and_words_are_words(tmp_path):
    parsed = configs._parse("a: 1e-3\nb: no\nc: 100_000\nd: 0x10\ne: 2026-01-01\nf: true\ng: null\nh: .5", "x")
    assert parsed == {
        "a": 1e-3,
        "b": "no",
        "c": 100_000,
        "d": "0x10",
        "e": "2026-01-01",
        "f": True,
        "g": None,
        "h": 0.5,
    }


def test_the_schema_accepts_every_config_and_refuses_a_misspelt_key():
    schema = configs.schema()
    for file in Path("configs").rglob("*.yaml"):
        jsonschema.validate(yaml.load(file.read_text(), configs._Loader), schema)
    tree = configs.read(DIGITS)
    tree["network"]["depht"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, schema)


class OwnNetwork(Settings):
    """A user's network config: used by name below."""

    name: str
    power: int = 2

    def build(self, spec, num_classes):
        return None


def test_a_class_of_the_users_own_needs_trust():
    tree = configs.read(DIGITS)
    tree["network"] = {"name": f"{__name__}:OwnNetwork", "power": 3}
    own = configs.validate(tree, "x", trust=True).network
    assert type(own).__name__ == "OwnNetwork" and own.power == 3
    with pytest.raises(ConfigError, match="--trust"):
        configs.validate(tree, "x", trust=False)
    tree["network"]["name"] = "nowhere:Nothing"
    with pytest.raises(ConfigError, match="cannot import"):
        configs.validate(tree, "x", trust=True)


def test_sampling_is_validated_by_its_process():
    changed = configs.override_sampling(configs.load(DIGITS).sampling, ["steps=7", "guidance=1.5"])
    assert (changed.steps, changed.guidance) == (7, 1.5)
    with pytest.raises(ConfigError, match="steps"):
        configs.override_sampling(changed, ["steps=0"])


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("configs/digits/dmd2_flow.yaml", "distillation dmd2"),
        ("configs/digits/msd_2.yaml", "distillation multi_student"),
        ("configs/digits/vq.yaml", "a tokenizer"),
    ],
)
def test_dropped_labels_are_refused_where_nothing_drops_them(recipe, trained):
    with pytest.raises(ConfigError, match=f"^{recipe}: training.label_dropout means nothing to {trained}.*; remove it"):
        configs.load_run(recipe, ["training.label_dropout=0.2"])
    assert configs.load_run(recipe, ["training.label_dropout=0.1"]) == configs.load_run(recipe)


@pytest.mark.parametrize("recipe", ["consistency_distillation", "msd_tsm"])
def test_lessons_that_drop_labels_take_any_share(recipe):
    config = configs.load(f"configs/digits/{recipe}.yaml", ["training.label_dropout=0.2"])
    assert config.training.label_dropout == 0.2
