"""What a tokenizer's run leaves on disk, and the images it is looked at with."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab import __version__
from genlab import config as configs
from genlab.config import TokenizerRunConfig
from genlab.core.contracts import TrainableTokenizer, to_float
from genlab.core.errors import CheckpointError, DataError
from genlab.core.weights import fill_all, read_tensors
from genlab.data.loader import Source, batches
from genlab.data.source import ImageSource
from genlab.tokenization.storage import save_tokenizer
from genlab.training import checkpoint
from genlab.training.heads import without_head

DESCRIPTION = "tokenizer.json"  # in a run folder: provenance, written when training starts
_MEASURED = 4096  # images on which the standardisation of continuous latents is measured


def describe(config: TokenizerRunConfig, source: Source) -> dict[str, Any]:
    """The JSON-able provenance of a tokenizer."""
    return {
        "kind": "tokenizer",
        "genlab": __version__,
        "name": config.name,
        "image_size": source.image_size,
        "data": config.data.name,
        "license": config.license,
        "ema": config.training.average,
    }


def examples(config: TokenizerRunConfig, source: Source, count: int) -> Tensor:
    """uint8 [n,3,R,R], n <= count: held-out images where the data has some, else the first of the training images."""
    with suppress(DataError):  # nothing is held out
        source = config.data.build("test")
    if isinstance(source, ImageSource):
        every = max(len(source) // count, 1)
        return source.fetch(list(range(0, len(source), every))[:count])[0]
    return _training_images(source, count, config.seed)


def export(run: Path, source: Source | None = None) -> Path:
    """Write `run/export` from the newest sound checkpoint: averaged weights, and the latents' mean and spread.

    Args:
        source: the training data, on which mean and spread of continuous latents are measured where the config does
            not give them; by default built again from the run's config.

    Raises:
        CheckpointError: no sound checkpoint.
    """
    config = configs.load_run(run / "config.yaml")
    assert isinstance(config, TokenizerRunConfig)
    newest, problems = checkpoint.latest(run / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{run}: has no sound checkpoint to export{f' ({problems[0]})' if problems else ''}")
    source = source or config.data.build()
    tokenizer = config.tokenizer.build(source.image_size)
    file = newest / f"{checkpoint.average_stem('tokenizer', config.training.average)}.safetensors"
    fill_all(tokenizer.state_dict(), without_head(read_tensors(file)), str(file))
    settings = config.tokenizer
    if tokenizer.spec.kind == "continuous" and (tokenizer.spec.mean, tokenizer.spec.std) == ((0.0,), (1.0,)):
        mean, std = _spread(tokenizer.eval(), _training_images(source, _MEASURED, config.seed))
        settings = settings.model_copy(update={"mean": mean, "std": std})
    facts = {**describe(config, source), "images": checkpoint.read_state(newest)["images"]}
    return save_tokenizer(run / "export", settings, tokenizer, facts)


@torch.no_grad()
def _spread(tokenizer: TrainableTokenizer, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel (of the posterior means, in float64)."""
    total = square = torch.zeros(tokenizer.spec.channels, dtype=torch.float64)
    for chunk in images.split(64):
        raw = tokenizer.encode(to_float(chunk))
        assert isinstance(raw, Tensor)
        latents = raw[:, : tokenizer.spec.channels].double()  # the posterior's means come first
        total = total + latents.mean(dim=(2, 3)).sum(dim=0)
        square = square + latents.square().mean(dim=(2, 3)).sum(dim=0)
    mean = total / len(images)
    std = (square / len(images) - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())


def _training_images(source: Source, count: int, seed: int) -> Tensor:
    """The first `count` images of the training sequence, uint8 [count,3,R,R]."""
    size = min(count, 64)
    feed = batches(source, seed=seed, batch=size, micro_batch=size)
    images = [batch.images for batch in islice(feed, -(-count // size)) if batch.images is not None]
    return torch.cat(images)[:count]
