"""The latent cache: writing against the bare encoder, reading, and memory.

    python benchmarks/cache.py [--images 2000] [--side 64]

Prints one JSON line. "writing" is the speed of caching random crops of photographs through a small convolutional
encoder, divided by that of the encoder alone on images in memory (1.0 would be free). "reading" is images per second of
4x4 codes in shuffled batches of 128, as training receives them. "memory_mib" is what a process allocates more (without
the pages of mapped files, which the system takes back) after it has read a cache ten times as large.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Raw, Tokenizer, to_float
from genlab.data.digits import Digits
from genlab.data.latent_index import Index, Plan
from genlab.data.latent_writer import Encoder, begin, finish, write_shards
from genlab.data.latents import LatentSource
from genlab.data.loader import batches
from genlab.data.photos import Photos
from genlab.data.source import ImageSource
from samplers.noise import SampleRng

BATCH = 64


class Convolutions(Tokenizer):
    """As costly as a small KL autoencoder's encoder: moments on a grid of a quarter of the side."""

    def __init__(self, side: int, width: int = 64):
        super().__init__()
        self.spec = LatentSpec("continuous", 4, (side // 4, side // 4), side, fingerprint="benchmark")
        strides, widths = (1, 2, 1, 2, 1), (3, width, width, width, width, width)
        layers = [nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in zip(widths, widths[1:], strides)]
        self.layers = nn.Sequential(*[part for layer in layers for part in (layer, nn.SiLU())], nn.Conv2d(width, 8, 1))

    def encode(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        raise NotImplementedError("a cache is made by encode alone")

    def decode(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("a cache is made by encode alone")


class Codes(Convolutions):
    """Codes [4,4] of digits, at no cost."""

    def __init__(self) -> None:
        super().__init__(8)
        self.spec = LatentSpec("codes", 4, (4, 4), 8, 256, fingerprint="benchmark")

    def encode(self, images: Tensor) -> Tensor:
        return ((images.mean(1)[:, ::2, ::2] + 1) * 127).long()


class Repeated(ImageSource):
    """A source as if it had `length` images."""

    def __init__(self, source: ImageSource, length: int):
        super().__init__(source.class_names, source.image_size)
        self._source, self._length = source, length

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices, positions=None):  # type: ignore[no-untyped-def]
        return self._source.fetch([index % len(self._source) for index in indices], positions)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def make(folder: Path, source: ImageSource, tokenizer: Tokenizer, shard_size: int) -> Index:
    """Cache `source`."""
    encoder = Encoder(source, tokenizer.eval(), torch.device("cpu"))
    plan = Plan(
        tokenizer={},
        spec=tokenizer.spec,
        data={},
        data_fingerprint=source.fingerprint(),
        class_names=source.class_names,
        images=len(source),
        flips=False,
        crops=1,
        shard_size=shard_size,
        tensors=encoder.layout("float32"),
    )
    begin(folder, plan, None)
    list(write_shards(folder, plan, range(len(plan.ranges)), encoder, batch=BATCH, workers=1))
    return finish(folder, plan, None)


def writing(folder: Path, images: int, side: int) -> dict[str, float]:
    """Both are run twice in turn, and the best of each is taken: other work disturbs one as well as the other."""
    source, tokenizer = Photos(size=side, count=images).build(), Convolutions(side).eval()
    batch = to_float(source.fetch(range(BATCH))[0])
    bare = cached = float("inf")
    for turn in range(2):
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(images // BATCH):
                tokenizer.encode(batch)
        bare = min(bare, (time.perf_counter() - begun) / (images // BATCH * BATCH))
        begun = time.perf_counter()
        make(folder / f"written{turn}", source, tokenizer, 500)
        cached = min(cached, (time.perf_counter() - begun) / images)
    return {"bare_images_per_s": 1 / bare, "cached_images_per_s": 1 / cached, "writing": bare / cached}


def reading(folder: Path, images: int) -> dict[str, float]:
    """Images per second, and memory that the process does not give back."""
    digits = Digits().build()
    assert isinstance(digits, ImageSource)
    rates, memory = [], []
    for length in (images, 10 * images):
        index = make(folder / f"codes{length}", Repeated(digits, length), Codes(), 50_000)
        feed = batches(LatentSource(folder / f"codes{length}", index), seed=0, batch=128, micro_batch=128)
        next(feed)
        begun = time.perf_counter()
        for _ in islice(feed, length // 128):
            pass
        rates.append(length // 128 * 128 / (time.perf_counter() - begun))
        memory.append(_anonymous_mib())
    return {"reading_images_per_s": min(rates), "memory_mib": memory[1] - memory[0]}


def _anonymous_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = writing(Path(folder), options.images, options.side) | reading(Path(folder), 20_000)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
