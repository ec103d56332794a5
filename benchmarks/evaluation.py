"""The streamed pass against sampling to PNG and running torch-fidelity on the folder: same images, same numbers.

    python benchmarks/evaluation.py [--data digits] [--images 256] [--side 64]

Both sides use EfficientNet-Lite0 in genlab's implementation (registered in torch-fidelity as its judges are), so the
difference is all that surrounds the network, and how it is called. "Sampling" is drawing fractals or reading digits;
its time is left out on both sides. The reference is warm on both sides: genlab's cached statistics, torch-fidelity's
cached features.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch_fidelity
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from genlab.data.digits import Digits
from genlab.data.fractals import Fractals
from genlab.evaluation.asks import Ask
from genlab.evaluation.building import build_references
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.metrics import Need
from genlab.evaluation.scores import Comparison, Rules, compute
from genlab.evaluation.session import Session
from genlab.evaluation.sources import DataImages, GeneratedImages, ScoredImages, Subset

METRICS = ["fid", "is", "kid", "precision", "recall"]
T = TypeVar("T")


class Lite0(FeatureExtractorBase):
    """genlab's extractor behind torch-fidelity's interface."""

    def __init__(self, name: str, features_list: list[str], **unused: Any):
        super().__init__(name, features_list)
        self.extractor = load_extractor("efflite0", layers=("pool", "logits"))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.extractor(images)
        return tuple(found[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and its seconds."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


def streamed(images: Tensor, real: ScoredImages, cache: Path) -> dict[str, float]:
    """genlab: from generated images straight to scores."""
    labels = [0] * len(images)
    source = GeneratedImages(lambda index: iter([(list(index), images[list(index)])]), labels, [], images.shape[-1], {})
    extractor = load_extractor("efflite0")
    reference = build_references(real, [extractor], cache=cache)["efflite0"].collected
    ask = Ask(extractor, frozenset({Need.MOMENTS, Need.LOGITS, Need.FEATURES}))
    result = Session(source, [ask]).run()
    comparison = Comparison(extractor, result.collected["efflite0"], reference, Rules(), digits=False)
    scores, problems = compute(comparison, METRICS)
    assert not problems, problems
    print(f"  of the streamed pass, the network alone: {result.times.extraction:.2f} seconds")
    return {score.metric: score.value for score in scores}


def through_files(images: Tensor, folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """The usual way: PNGs, then torch-fidelity."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")
    found = torch_fidelity.calculate_metrics(input1=str(folder), isc=True, fid=True, kid=True, prc=True, **options)
    return {
        "fid": found["frechet_inception_distance"],
        "is": found["inception_score_mean"],
        "kid": found["kernel_inception_distance_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("fractals", "digits"), default="fractals")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    torch_fidelity.register_feature_extractor("efflite0", Lite0)
    real, other = (_data(options.data, options.side, options.images, seed) for seed in (1, 2))
    images, real_images = (
        torch.cat([part.images for part in source.parts(range(len(source)))]) for source in (other, real)
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        build_references(real, [load_extractor("efflite0")], cache=place)
        judge: dict[str, Any] = {
            "input2": "real",
            "input2_cache_name": "real",
            "cache_root": str(place),
            "feature_extractor": "efflite0",
            "cuda": False,
            "verbose": False,
            "kid_subset_size": min(1000, options.images),
        }
        torch_fidelity.register_dataset("real", lambda root, download: _Rows(real_images))
        through_files(images[:64], place / "first", {**judge, "kid_subset_size": 64})  # fills torch-fidelity's cache
        ours, our_seconds = timed(lambda: streamed(images, real, place))
        theirs, their_seconds = timed(lambda: through_files(images, place / "pictures", judge))
    print(
        f"{options.images} {options.data} of {options.side} pixels, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    for metric in METRICS:
        print(f"  {metric:<10} streamed {ours[metric]:.9g}  torch-fidelity {theirs[metric]:.9g}")
    print(f"seconds outside sampling: streamed {our_seconds:.2f}, through files {their_seconds:.2f}")
    print(f"ratio {their_seconds / our_seconds:.2f}")


def _data(name: str, side: int, count: int, seed: int) -> ScoredImages:
    if name == "fractals":
        return DataImages(Fractals(size=side, count=count, seed=seed).build(), name)
    return Subset(DataImages(Digits(size=side).build(), name), count, seed)


class _Rows(torch.utils.data.Dataset[Tensor]):
    """Images as torch-fidelity wants them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


if __name__ == "__main__":
    main()
