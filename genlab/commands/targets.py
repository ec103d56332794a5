"""What the words on the command line mean: run folders, folders of images, archives, data sets, statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from genlab import config as configs
from genlab import pretrained
from genlab.config import override_sampling
from genlab.config_errors import nearest
from genlab.core.contracts import SamplingSettings
from genlab.core.errors import ConfigError, DataError
from genlab.core.evaluations import Evaluations
from genlab.core.generator import Generator
from genlab.data.configs import DataConfig
from genlab.data.folder import Folder
from genlab.data.source import ImageSource
from genlab.evaluation.archives import NpzImages, SafetensorsImages, npz_keys
from genlab.evaluation.blocks import BLOCK, made_at_once
from genlab.evaluation.picture_folder import PictureFolder
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.quantise import quantise
from genlab.evaluation.sources import DataImages, GeneratedImages, ScoredImages, Subset, label_plan
from genlab.pretrained import from_pretrained
from genlab.sampling import sample_images

_DATA_SETS = tuple(kind.model_fields["name"].default for kind in get_args(get_args(DataConfig)[0]))


@dataclass(frozen=True)
class Subject:
    """What is scored."""

    source: ScoredImages
    title: str
    plan: dict[str, Any] = field(default_factory=dict)
    """As `genlab sample` writes it, for images that come from a generator."""
    generator: Generator | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)
    """Of the generator's network."""


@dataclass(frozen=True)
class SubjectOptions:
    """How a subject is read or sampled."""

    samples: int | None
    batch: int
    overrides: Sequence[str]
    size: int | None
    trust: bool


def is_generator(target: str) -> bool:
    """Whether `target` is a run folder, an export or (being nothing else) a hub id."""
    path = Path(target)
    if path.is_dir():
        return any((path / file).is_file() for file in (pretrained.DESCRIPTION, "config.json", "export/config.json"))
    return (
        not path.exists() and target not in _DATA_SETS and path.suffix not in (".npz", ".safetensors", ".yaml", ".yml")
    )


def find_subjects(
    target: str, protocol: Protocol, options: SubjectOptions, seeds: Sequence[int], device: torch.device
) -> list[Subject]:
    """The images that `target` stands for, of each seed: a generator's samples, or a subset of images.

    Raises:
        GenlabError: nothing there that can be scored, or images that no seed changes.
    """
    if is_generator(target):
        generator, evaluations = from_pretrained(target, device, options.trust), Evaluations()
        return [_generated(target, generator, protocol, options, seed, evaluations) for seed in seeds]
    source = _images(Path(target), options.size) if Path(target).exists() else find_data(target, options.size)
    plan = source.plan() if isinstance(source, PictureFolder) else {}
    if options.samples is not None and options.samples != len(source):
        return [Subject(Subset(source, options.samples, seed), target, plan) for seed in seeds]
    if len(seeds) > 1:
        raise ConfigError(f"{target}: the same images come of every seed; score subsets (--samples), or drop --repeats")
    return [Subject(source, target, plan)]


def _generated(
    target: str,
    generator: Generator,
    protocol: Protocol,
    options: SubjectOptions,
    seed: int,
    evaluations: Evaluations,
) -> Subject:
    settings, ignored = _published_settings(generator.sampling, protocol)
    settings = override_sampling(settings, options.overrides)
    count = options.samples or protocol.samples
    labels = label_plan(generator.network.num_classes, count, protocol.labels, seed)
    draw = partial(_draw, generator, evaluations, labels, seed, options.batch, settings, protocol)
    sampling = settings.model_dump(mode="json")
    account = {
        "run": target,
        "weights": weights_checksum(generator),
        "seed": seed,
        "label_rule": protocol.labels,
        "sampling": sampling,
        "rounding": str(protocol.rounding),
    }
    source = GeneratedImages(draw, labels, generator.class_names, generator.tokenizer.spec.image_size, account)
    source.warnings += ignored
    plan = {"run": target, "seed": seed, "labels": labels, "sampling": sampling}
    return Subject(source, target, plan, generator, evaluations)


def _published_settings(own: SamplingSettings, protocol: Protocol) -> tuple[SamplingSettings, list[str]]:
    """A generator's settings with those of the protocol's paper that its process knows, and words on the others."""
    fields = type(own).model_fields
    known = [f"{key}={value}" for key, value in protocol.sampling.items() if key in fields]
    try:
        settings = override_sampling(own, known)
    except ConfigError:
        return own, [
            f"{protocol.title}'s sampler settings ({', '.join(known)}) do not fit this generator: its own apply"
        ]
    return settings, [
        f"the protocol's {key}={value} means nothing to this generator's sampler"
        for key, value in protocol.sampling.items()
        if key not in fields
    ]


def _draw(
    generator: Generator,
    evaluations: Evaluations,
    labels: list[int],
    seed: int,
    batch: int,
    settings: SamplingSettings,
    protocol: Protocol,
    index: Sequence[int],
) -> Iterator[tuple[list[int], Tensor]]:
    """Images in batches that depend on their indices alone, not on which other blocks this process makes.

    Batches larger than a block must span blocks, whatever these are; levels may then differ by one now and then.
    """
    rule = partial(quantise, rule=protocol.rounding)
    batch = made_at_once(batch, generator.device)
    whole = batch > BLOCK
    with evaluations.counting(generator.network):
        for _, block in groupby(index, key=lambda i: whole or i // BLOCK):
            yield from sample_images(generator, labels, seed, list(block), batch, settings, quantise=rule)


def _images(path: Path, size: int | None) -> ScoredImages:
    if path.is_dir():
        return PictureFolder(path, size)
    if path.suffix in (".yaml", ".yml"):
        return find_data(str(path), size)
    if size is not None:
        raise DataError(f"{path}: archives are scored at their own size; --size is for folders and data sets")
    if path.suffix == ".npz":
        if "arr_0" not in npz_keys(path):
            raise DataError(f"{path}: holds statistics or nothing, no images (arr_0); give it to --against instead")
        return NpzImages(path)
    if path.suffix == ".safetensors":
        return SafetensorsImages(path)
    raise DataError(f"{path}: neither a folder, .npz, .safetensors nor a data config (.yaml)")


def find_data(word: str, size: int | None = None) -> DataImages:
    """A data set by name (`digits`), by folder, or by a YAML with a `data:` section, at side `size` if given."""
    path = Path(word)
    tree: dict[str, Any] = {"name": word}
    if path.is_dir():
        tree = Folder(path=path).model_dump(mode="json")
    elif path.suffix in (".yaml", ".yml"):
        whole = configs.read(path)
        tree = whole["data"] if isinstance(whole.get("data"), dict) else whole
    elif word not in _DATA_SETS:
        raise DataError(
            f"{word}: no such folder, file or data set{nearest(word, _DATA_SETS)} (data sets: {', '.join(_DATA_SETS)})"
        )
    if size is not None:
        tree["size"] = size
    return data_from(tree, word)


def data_from(tree: dict[str, Any], where: str) -> DataImages:
    """The training images of a data config. Raises ConfigError, DataError."""
    try:
        settings: Any = TypeAdapter(DataConfig).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    built = settings.build()
    if not isinstance(built, ImageSource):
        raise DataError(f"{where}: a stream has no fixed set of images; score or reference a folder of them")
    return DataImages(built, settings.name)


def training_data(run: str, size: int) -> DataImages | None:
    """The data that a run folder was trained on, at side `size`; None where the folder does not say."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        return None
    tree = configs.read(file)["data"]
    return data_from({**tree, "size": size}, str(file))


def held_out_data(run: str, size: int) -> DataImages | None:
    """The images that a run's data keep for tests, at side `size`; all of them where none are held out.

    None where the folder does not say, or its data are a stream.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        return None
    config = configs.load_run(file, [f"data.size={size}"]).data
    try:
        images = config.build("test")
    except DataError:  # nothing is held out
        images = config.build()
    return DataImages(images, config.name) if isinstance(images, ImageSource) else None


def weights_checksum(generator: Generator) -> str:
    """16 digits of a SHA-256 over all weights, network and tokenizer."""
    hasher = hashlib.sha256()
    for module in (generator.network, generator.tokenizer):
        for name, value in sorted(module.state_dict().items()):
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:16]
