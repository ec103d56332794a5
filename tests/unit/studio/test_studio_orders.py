"""Orders: what is taken, what is refused, and that they can be repeated elsewhere."""

import io
import json
import math
import shlex

import pytest
import torch
from PIL import Image
from studio_runs import write_run

from genlab.commands import sample as sample_command
from genlab.config import override_sampling
from genlab.core.errors import GenlabError
from genlab.pretrained import from_pretrained
from genlab.sampling import label_plan, sample_images
from genlab.studio.catalog import Catalog
from genlab.studio.orders import Limits, place
from genlab.studio.pictures import KEY, to_png

NAMES = ["zero", "3", "two words", "a,b", "3", "5", "owl", "<b>x</b>", "8", "9"]


@pytest.fixture
def entry(tmp_path):
    return entry_of(write_run(tmp_path / "tiny", class_names=NAMES))


def entry_of(run):
    (entry,) = Catalog([run]).refresh().entries.values()
    return entry


def order(entry, classes=(0,), per_class=1, seed=0, **changes):
    return place(entry, list(classes), per_class, seed, changes, Limits())


def test_classes_by_number_and_by_name(entry):
    assert order(entry, [6, "owl", "two words", "7", "3", 10], per_class=2).labels == (6, 6, 2, 2, 7, 7, 1, 1, 10, 10)


def test_no_class_comes_last_and_moves_no_other_image(entry):
    assert order(entry, [10, 4, 2]).labels == (4, 2, 10)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"per_class": 0}, "images per class"),
        ({"per_class": -3}, "images per class"),
        ({"per_class": 2.5}, "images per class"),
        ({"per_class": math.nan}, "nan"),
        ({"per_class": math.inf}, "inf"),
        ({"per_class": 10**30}, "images per class"),
        ({"per_class": "4"}, "images per class"),
        ({"per_class": True}, "images per class"),
        ({"per_class": None}, "images per class"),
        ({"classes": range(10), "per_class": 200}, "256 images"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": math.nan}, "seed"),
        ({"seed": "0; rm"}, "seed"),
        ({"classes": []}, "at least one class"),
        ({"classes": [11]}, "class"),
        ({"classes": [-1]}, "class"),
        ({"classes": ["../../etc"]}, "unknown"),
        ({"classes": ["olw"]}, "did you mean 'owl'"),
        ({"classes": [None]}, "class"),
        ({"classes": [[1]]}, "class"),
        ({"classes": ["٣"]}, "unknown"),
        ({"classes": [0] * 500}, "classes"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"steps": "4"}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance_interval": [1, 0]}, "guidance_interval"),
        ({"sampler": "__import__('os')"}, "sampler"),
        ({"stepz": 4}, "did you mean 'steps'"),
        ({"guidance": object()}, "plain value"),
    ],
)
def test_nonsense_is_refused_in_words(entry, changes, said):
    with pytest.raises(GenlabError, match=said) as caught:
        order(entry, **changes)
    assert len(str(caught.value)) < 400


def test_an_unconditional_generator_needs_no_classes(tmp_path):
    made = order(entry_of(write_run(tmp_path / "plain", classes=0)), classes=[], per_class=3)
    assert made.labels == (0, 0, 0) and "--classes" not in made.command()


def test_the_command_makes_the_same_plan(entry):
    made = order(
        entry,
        [6, 0, 5, 1],
        per_class=3,
        seed=11,
        steps=7,
        guidance=3,
        guidance_interval=[0.1, 0.9],
        guidance_channels=1,
    )
    words = shlex.split(made.command())
    run, overrides, options = words[2], words[3:-6], dict(zip(words[-6::2], words[-5::2]))
    generator = from_pretrained(run)
    chosen = sample_command._parse_classes(options["--classes"], generator)
    assert label_plan(10, chosen, int(options["--per-class"]), 0) == list(made.labels)
    assert override_sampling(generator.sampling, overrides) == made.settings and options["--seed"] == "11"


def test_what_the_command_line_cannot_say_gives_no_command(entry):
    assert "--classes none" in order(entry, [10]).command()
    assert order(entry, [3]).command() == ""  # "3" means another class, and its own name has a comma


def test_metadata_of_a_png_makes_the_image_again(entry):
    made = order(entry, [6, 2], per_class=2, seed=5, steps=3, guidance=2.0)
    generator = from_pretrained(entry.folder)
    (part,) = sample_images(generator, made.labels, made.seed, range(4), 64, made.settings)
    with Image.open(io.BytesIO(to_png(part.images[3], made.metadata(3)))) as picture:
        told = json.loads(picture.text[KEY])
    assert told["run"] == "tiny" and told["class"] == "two words" and told["images"] == 1280
    settings = type(made.settings)(**told["sampling"])
    labels = [told["label"]] * 4
    (again,) = sample_images(generator, labels, told["seed"], [told["index"]], 1, settings)
    assert torch.equal(again.images[0], part.images[3])
