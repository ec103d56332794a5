"""The work of the Tokenizers panel: an image encoded and decoded, what is lost on the way, and which codes are used."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import LatentSpec, Raw, Tokenizer, to_float, to_uint8
from genlab.core.errors import DataError, GenlabError, WeightsUnavailable
from genlab.data.source import ImageSource
from genlab.evaluation.reconstruction import Lpips, load_lpips, mse, psnr, ssim
from genlab.evaluation.tokenizer_scores import AMPLIFIED, by_group, differences
from genlab.studio.code_pictures import bars, channel_map, code_map
from genlab.studio.models import Models
from genlab.studio.pictures import to_png
from genlab.studio.store import Job
from genlab.studio.tokenizer_entries import BuiltIn, Group, TokenizerEntry
from genlab.studio.tokenizer_orders import UPLOAD, TokenizerOrder
from genlab.studio.uploads import decode_upload, fit
from genlab.studio.worker import Running
from genlab.tokenization.losses.lpips_network import LPIPS_TRUNKS, LpipsNet
from genlab.tokenization.quantizers.codes import Usage
from samplers.noise import spawn

_BATCH = 32  # images to count codes over at once
_MOST_CHANNELS = 16  # of a continuous latent that are shown
_LPIPS: LpipsNet = "alex"  # as papers print it


@torch.no_grad()
def reconstruct(running: Running, models: Models) -> dict[str, Any]:
    """Fill a TokenizerOrder.

    Gives `images`, `steps` and `codes`, lists of (file below the job's results, caption): the image, its reconstruction
    and their difference; the reconstructions from the first depths or scales; the codes in colours or the channels of
    a continuous latent. Further `measures` (name -> number; None: infinite), `missing` (why others are not there), and
    `usage`, for each depth or scale the codes used in the image and in the data.
    """
    order = TokenizerOrder.of(running.job.wants)
    tokenizer = models.tokenizer(order.entry)
    folder = running.job.results
    original = _original(running.job, order)
    running.check()
    begun = time.monotonic()
    raw = tokenizer.encode(to_float(original.to(models.device)))
    tokens = tokenizer.prepare(raw, spawn(0, [0], models.device))
    made = to_uint8(tokenizer.decode(tokens)).cpu()
    seconds = time.monotonic() - begun
    triple = {
        "original": (original, "Original"),
        "reconstruction": (made, "Reconstruction"),
        "difference": (differences(made, original), f"Difference × {AMPLIFIED}"),
    }
    result: dict[str, Any] = {
        "images": [_save(folder, name, image[0], words) for name, (image, words) in triple.items()],
        "seconds": seconds,
    }
    running.show(0.1, "reconstructed", partial=result)
    result |= dict(zip(("measures", "missing"), _measure(made, original)))
    result["codes"] = [
        _save(folder, f"codes-{n}", *picture) for n, picture in enumerate(_codes(raw, tokens, order.entry), 1)
    ]
    running.show(0.2, "measured", partial=result)
    result["steps"] = []
    for number, (image, words) in enumerate(_steps(tokenizer, tokens, order.entry.groups), 1):
        running.check()
        result["steps"].append(_save(folder, f"step-{number}", image, words))
    running.show(0.3, "reconstructed step by step", partial=result)
    if order.entry.groups:
        result["usage"] = _usage(running, tokenizer, order, raw)
    return result


def _original(job: Job, order: TokenizerOrder) -> Tensor:
    """The image that is wanted, uint8 [1,3,R,R]."""
    if order.data:
        source = _source(order.entry.samples[order.data])
        if order.number >= len(source):
            raise GenlabError(f"{order.data}: the images are numbered 0 to {len(source) - 1}")
        return source.fetch([order.number])[0]
    return fit(decode_upload(job.given(UPLOAD).read_bytes()), order.entry.spec.image_size).unsqueeze(0)


@lru_cache(maxsize=2)
def _source(settings: BuiltIn) -> ImageSource:
    return settings.build()


def _save(folder: Path, name: str, image: Tensor, caption: str) -> tuple[str, str]:
    file = folder / f"{name}.png"
    file.write_bytes(to_png(image, {"caption": caption}))
    return file.name, caption


def _measure(made: Tensor, original: Tensor) -> tuple[dict[str, float | None], list[str]]:
    """Numbers by name, and why others are missing."""
    values = {"psnr": psnr(mse(made, original)).item()}
    missing = []
    for name, measure in (("ssim", ssim), ("lpips", _lpips)):
        try:
            values[name] = measure(made, original).item()
        except (DataError, WeightsUnavailable) as error:
            missing.append(str(error))
    return {name: value if abs(value) < float("inf") else None for name, value in values.items()}, missing


def _lpips(made: Tensor, original: Tensor) -> Tensor:
    """Raises WeightsUnavailable where its weights are not at hand: a page downloads nothing."""
    weights = LPIPS_TRUNKS[_LPIPS]
    if not weights.cached.is_file():
        raise WeightsUnavailable(
            f"LPIPS needs {weights.file} ({weights.megabytes} MB); `genlab evaluate` of any tokenizer downloads it"
        )
    return _loaded_lpips()(made, original)


@lru_cache(maxsize=1)
def _loaded_lpips() -> Lpips:
    return load_lpips(_LPIPS)


def _codes(raw: Raw, tokens: Tensor, entry: TokenizerEntry) -> Iterator[tuple[Tensor, str]]:
    """Pictures of what lies between encoder and decoder, uint8 [3,h,w], with captions."""
    spec = entry.spec
    if spec.vocab is None:
        for channel, values in enumerate(tokens[0, :_MOST_CHANNELS], 1):
            yield channel_map(values), f"Channel {channel}"
        return
    for (name, (height, width)), codes in zip(entry.groups, by_group(raw, spec)):
        yield code_map(codes[0].view(height, width), spec.vocab), f"{name}: {height} × {width}"


def _steps(tokenizer: Tokenizer, tokens: Tensor, groups: list[Group]) -> Iterator[tuple[Tensor, str]]:
    """What the codes of the first depths or scales alone give, uint8 [3,r,r], with captions; of one nothing."""
    if len(groups) < 2:
        return
    end = 0
    for number, (name, (height, width)) in enumerate(groups, 1):
        end += height * width
        first = tokens[:, :end] if tokenizer.spec.kind == "multiscale" else tokens[..., :number]
        words = name if number == 1 else f"{name.split()[0]}s 1 to {number}"
        yield to_uint8(tokenizer.decode(first)).cpu()[0], words


def _usage(running: Running, tokenizer: Tokenizer, order: TokenizerOrder, raw: Raw) -> dict[str, Any]:
    """How many codes of each group the image uses, and how evenly the data does."""
    spec, groups = tokenizer.spec, order.entry.groups
    assert spec.vocab is not None
    here, over = ([Usage(spec.vocab) for _ in groups] for _ in range(2))
    _count(here, raw, spec)
    settings = order.counted_data if order.counted else None
    images = 0
    for part, total in _batches(settings, order.counted):
        running.check()
        _count(over, tokenizer.encode(to_float(part).to(_device(tokenizer))), spec)
        images += len(part)
        running.show(0.3 + 0.7 * images / total, f"codes counted over {images} of {total} images")
    names = [group.name for group in groups]
    if spec.kind == "multiscale":  # its scales share one codebook
        names, here, over = [*names, "All scales"], [*here, _pooled(here)], [*over, _pooled(over)]
    rows = [{"name": name, **_report(*pair)} for name, *pair in zip(names, here, over)]
    data = settings.name if settings is not None else ""
    return {"vocab": spec.vocab, "data": data, "images": images, "groups": rows}


def _batches(settings: BuiltIn | None, count: int) -> Iterator[tuple[Tensor, int]]:
    """The first `count` images of data, uint8 [n,3,R,R], each with how many there are in all."""
    if settings is None:
        return
    source = _source(settings)
    total = min(count, len(source))
    for start in range(0, total, _BATCH):
        yield source.fetch(range(start, min(start + _BATCH, total)))[0], total


def _count(usages: list[Usage], raw: Raw, spec: LatentSpec) -> None:
    for usage, codes in zip(usages, by_group(raw, spec)):
        usage.count(codes.cpu())


def _pooled(usages: Sequence[Usage]) -> Usage:
    total = Usage(usages[0].histogram.shape[1])
    total.histogram += sum(usage.histogram for usage in usages)
    return total


def _report(here: Usage, over: Usage) -> dict[str, Any]:
    """JSON-able: codes used by the image, and over the data how many, their perplexity and their histogram."""
    vocab, histogram = here.histogram.shape[1], bars(over.histogram[0])
    one, many = here.read()[0], over.read()[0]
    facts = {"codes": one.total, "used": vocab - one.dead, "share": one.share}
    if not many.total:
        return facts
    return {**facts, "data_share": many.share, "perplexity": many.perplexity, "bars": histogram}


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
