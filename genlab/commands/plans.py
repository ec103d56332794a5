"""What each kind of recipe trains: its objective, scores on the way, and what it leaves on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from genlab import pretrained
from genlab.commands import tokenizers
from genlab.commands.scoring import scoring_hook
from genlab.config import RunConfig, TokenizerRunConfig
from genlab.core.errors import CheckpointError, DataError
from genlab.core.generator import Generator
from genlab.core.weights import fill_all
from genlab.data.latent_index import check
from genlab.data.latents import LatentSource
from genlab.data.loader import Source
from genlab.data.source import Images
from genlab.distillation.settings import DistillationSettings, Parts
from genlab.finetuning import stored
from genlab.training.generation import GenerationObjective
from genlab.training.objective import Objective
from genlab.training.reconstruction import ReconstructionObjective
from genlab.training.representation import Aligned

Scores = Callable[[int], dict[str, float]]
"""images seen -> scores by name, called on all processes."""


@dataclass(frozen=True)
class Plan:
    """A recipe, built."""

    objective: Objective
    scores: Callable[[Accelerator], Scores | None]
    """The periodic scores, once the device is known; None where none are asked for."""
    scores_every: int | None
    description_file: str
    """Where in the run folder the description goes when training starts."""
    description: dict[str, Any]
    export: Callable[[Path], Path]
    """run folder -> the export made of its newest checkpoint."""
    next: str
    """What to do with a finished {run}."""


def plan_generator(config: RunConfig, source: Source, classes: tuple[int, ...] | None = None) -> Plan:
    """A generator over a frozen tokenizer.

    Args:
        classes: those that a distilled generator is to know; by default all.

    Raises:
        DataError: a latent cache of another tokenizer.
        CheckpointError: a base to fine-tune, or a teacher, that is absent or of another architecture.
        ConfigError: a teacher of other latents or classes.
    """
    settings = config.training
    generator = build_generator(config, source)
    if isinstance(source, LatentSource):
        check(source.index, generator.tokenizer.spec)
    description = pretrained.describe(config, generator.tokenizer, source.num_classes, source.class_names)
    if config.finetune is not None:
        base = pretrained.from_pretrained(config.finetune.base, trust=Path(config.finetune.base).exists())
        begun = stored.begin(generator.network, base.network, config.finetune, config.seed)
        description["finetune"] = begun.model_dump(mode="json")
    objective: Objective
    if config.distillation is not None:
        assert isinstance(config.distillation, DistillationSettings), "several students have a plan each"
        description["distilled"] = {"by": config.distillation.name, "teacher": config.distillation.teacher}
        objective = _distil(config, config.distillation, generator, classes)
    else:
        aligned = _align(config, generator, source)
        role = settings.role(aligned.network if aligned else generator.network)
        objective = GenerationObjective(
            generator, role, settings.label_dropout, settings.preview_count, config.seed, aligned
        )

    def scores(accelerator: Accelerator) -> Scores | None:
        images = source.build_images() if isinstance(source, LatentSource) and config.evaluation.every else source
        return scoring_hook(config.evaluation, images, generator, accelerator, config.data.name)

    return Plan(
        objective,
        scores,
        config.evaluation.every,
        pretrained.DESCRIPTION,
        description,
        pretrained.export,
        "genlab sample {run} | genlab evaluate {run}",
    )


def _distil(
    config: RunConfig, how: DistillationSettings, generator: Generator, classes: tuple[int, ...] | None
) -> Objective:
    """The objective of a student that starts and learns as the recipe's `distillation:` says."""

    def load(source: str) -> Generator:
        return pretrained.from_pretrained(source, trust=Path(source).exists())

    try:
        teacher = load(how.teacher)
    except CheckpointError as error:
        advice = f".\nMake it with: accelerate launch genlab/train.py {how.recipe}" if how.recipe else ""
        raise CheckpointError(f"distillation.teacher: {error}{advice}") from error
    how.check(Parts.of(generator), Parts.of(teacher))
    if how.init != "fresh":
        start = teacher if how.init == "teacher" else load(how.init)
        fill_all(generator.network.state_dict(), start.network.state_dict(), f"distillation.init {how.init}")
    others = {name: load(source) for name, source in how.others().items()}
    role = config.training.role(generator.network)
    return how.objective(generator, teacher, role, config.training, config.seed, classes, **others)


def _align(config: RunConfig, generator: Generator, source: Source) -> Aligned | None:
    """The network with its projector, where the recipe has an `alignment:`. Raises DataError for a latent cache."""
    if config.alignment is None:
        return None
    if isinstance(source, LatentSource):
        raise DataError("alignment: its encoder sees images, and a latent cache has none; name the images as data")
    return config.alignment.build(generator.network, generator.tokenizer.spec)


def build_generator(config: RunConfig, source: Images) -> Generator:
    """Tokenizer, network with initial weights from the config's seed, and process."""
    tokenizer = config.tokenizer.build(source.image_size)
    torch.manual_seed(config.seed)
    network = config.network.build(tokenizer.spec, source.num_classes)
    network.activation_checkpointing = config.training.activation_checkpointing
    return Generator(tokenizer, network, config.process.build().over(tokenizer), config.sampling, source.class_names)


def plan_tokenizer(config: TokenizerRunConfig, source: Source) -> Plan:
    """A tokenizer, and the discriminator that judges it if one is asked for.

    Raises:
        DataError: a latent cache, which holds no images.
    """
    if isinstance(source, LatentSource):
        raise DataError("data: a tokenizer trains on images, not on a latent cache; name the images")
    torch.manual_seed(config.seed)
    tokenizer = config.tokenizer.build(source.image_size)
    examples = tokenizers.examples(config, source, config.training.preview_count)
    objective = ReconstructionObjective(tokenizer, config.reconstruction, config.training, examples)
    every = config.training.preview_every or max(config.training.total // 10, 1)
    return Plan(
        objective,
        lambda accelerator: lambda images: objective.scores(),
        every,
        tokenizers.DESCRIPTION,
        tokenizers.describe(config, source),
        partial(tokenizers.export, source=source),
        "genlab evaluate {run} --against " + config.data.name + " | genlab cache GENERATOR_CONFIG",
    )
