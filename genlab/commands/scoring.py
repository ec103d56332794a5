"""Scores while training: the `evaluation:` section of a config as a hook of the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.data.source import Images, ImageSource
from genlab.evaluation.protocols import EvaluationSettings
from genlab.sampling import sample_images


def scoring_hook(
    settings: EvaluationSettings, source: Images, generator: Generator, accelerator: Accelerator, data: str
) -> Callable[[int], dict[str, float]] | None:
    """images seen -> scores by name (empty but on the main process), or None where no evaluation is asked for.

    Extractor and reference are loaded here, so that missing weights are known before training.

    Raises:
        ConfigError: sharded weights or a stream of images, on which this cannot run.
        WeightsUnavailable: the extractor's weights are not to be had.
    """
    if settings.every is None:
        return None
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError(
            "evaluation.every: sharded weights are not scored while training; use `genlab evaluate` later"
        )
    from genlab.evaluation.building import build_references
    from genlab.evaluation.extractors import load_extractor
    from genlab.evaluation.in_training import evaluate_in_training
    from genlab.evaluation.references import load_reference
    from genlab.evaluation.sources import DataImages, ScoredImages, Subset

    extractor = load_extractor(settings.extractor, device=accelerator.device)
    if settings.against is not None:
        reference = load_reference(Path(settings.against), extractor, source.image_size)
    elif isinstance(source, ImageSource):
        images: ScoredImages = DataImages(source, data)
        if len(images) > settings.reference_images:
            images = Subset(images, settings.reference_images, seed=0)
        reference = build_references(images, [extractor], accelerator)[extractor.name]
    else:
        raise ConfigError("evaluation.against: a stream of images is no reference; name a file of `genlab reference`")

    def draw(labels: list[int]) -> Callable[..., object]:
        return partial(sample_images, generator, labels, settings.seed, batch=settings.batch)

    def score(images: int) -> dict[str, float]:
        return evaluate_in_training(
            draw,  # type: ignore[arg-type]
            generator.network.num_classes,
            generator.class_names,
            source.image_size,
            reference.collected,
            extractor,
            settings,
            accelerator,
        )

    return score
