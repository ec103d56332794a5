"""How faithful a tokenizer is and how well it uses its codes: everything from one pass over a set of images.

Images are encoded, decoded and rounded to 8 bits; the same pass that scores generators takes the reconstructions, and
what only pairs of original and reconstruction can tell is summed beside it.

Letters: N images, n images of a block, G codebooks or scales, V vocabulary, R side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import LatentSpec, Raw, Tokenizer, to_float
from genlab.core.errors import DataError
from genlab.evaluation.asks import Ask
from genlab.evaluation.blocks import BLOCK, made_at_once, whole_blocks
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.intervals import Z
from genlab.evaluation.metrics import Need
from genlab.evaluation.progress import Progress
from genlab.evaluation.quantise import Rounding, quantise
from genlab.evaluation.reconstruction import Lpips, mse, psnr, ssim
from genlab.evaluation.references import Reference
from genlab.evaluation.scores import Comparison, Rules, Score, compute
from genlab.evaluation.session import SAVE_EVERY, Pass, Processes, Session
from genlab.evaluation.sources import Part, ScoredImages
from samplers.noise import spawn

ORIGINALS = "originals"
AMPLIFIED = 4  # differences in the picture


@dataclass(frozen=True)
class TokenizerResult:
    """The scores of a tokenizer; complete on the main process."""

    scores: list[Score]
    problems: list[str]
    """What could not be computed, and why."""
    result: Pass
    cost: dict[str, float]
    """parameters, seconds_per_image (encoding and decoding), and images per second of each, per process."""


class Reconstructions(ScoredImages):
    """What a tokenizer makes of a set of images, with the sums of what it cost and lost: a `Tally` for the pass.

    Args:
        tokenizer: on its device; put into evaluation mode.
        source: images of the tokenizer's side.
        lpips: where its weights are to be had.
        seed: of posterior samples; each image has its own stream.
        batch: images at once on an accelerator.

    Raises:
        DataError: images of another side.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: ScoredImages,
        rounding: Rounding = Rounding.HALF_UP,
        lpips: Lpips | None = None,
        seed: int = 0,
        batch: int = BLOCK,
    ):
        super().__init__(len(source), source.image_size, source.class_names)
        if tokenizer.spec.image_size != source.image_size:
            raise DataError(
                f"the tokenizer takes images {tokenizer.spec.image_size} pixels wide, these have {source.image_size};"
                f" give --size {tokenizer.spec.image_size}"
            )
        self.warnings = [*source.warnings]
        self.tokenizer, self.source, self.rounding, self.lpips = tokenizer.eval(), source, rounding, lpips
        self.seed = seed
        self.device = next(tokenizer.parameters(), torch.empty(0)).device
        self.batch = min(made_at_once(batch, self.device), BLOCK)
        per_image = ("mse", "ssim", "lpips") if lpips is not None else ("mse", "ssim")
        self.sums = {name: torch.zeros(len(source), dtype=torch.float64) for name in per_image}
        self.sums |= {name: torch.zeros((), dtype=torch.float64) for name in ("encoding", "decoding")}
        if tokenizer.spec.vocab is not None:
            groups = len(positions(tokenizer.spec))
            self.sums["codes"] = torch.zeros(groups, tokenizer.spec.vocab, dtype=torch.int64)
        self.problems: dict[str, str] = {}

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        for part in whole_blocks(self.source.parts(index), len(self)):
            made = [
                self._reconstruct(rows, images)
                for rows, images in zip(_cut(part.index, self.batch), part.images.split(self.batch), strict=True)
            ]
            images = torch.cat(made)
            self._compare(torch.tensor(part.index), images, part.images)
            yield replace(part, images=images)

    def describe(self) -> dict[str, Any]:
        spec = self.tokenizer.spec
        return {
            "kind": "reconstructions",
            "tokenizer": type(self.tokenizer).__name__,
            "fingerprint": spec.fingerprint,
            "latent": spec.kind,
            "channels": spec.channels,
            "grid": list(spec.grid),
            "vocab": spec.vocab,
            "rounding": str(self.rounding),
            "seed": self.seed,
            "images": self.source.describe(),
        }

    def name(self, index: int) -> str:
        return f"the reconstruction of {self.source.name(index)}"

    def class_sorted(self) -> bool:
        return self.source.class_sorted()

    @torch.no_grad()
    def _reconstruct(self, index: list[int], images: Tensor) -> Tensor:
        """uint8 [n,3,R,R] of uint8 [n,3,R,R]; counts codes and seconds."""
        inputs = to_float(images.to(self.device))
        raw, seconds = self._timed(lambda: self.tokenizer.encode(inputs))
        self.sums["encoding"] += seconds
        if "codes" in self.sums:
            self._count_codes(raw)
        tokens = self.tokenizer.prepare(raw, spawn(self.seed, index, self.device))
        decoded, seconds = self._timed(lambda: self.tokenizer.decode(tokens))
        self.sums["decoding"] += seconds
        return quantise(decoded.float(), self.rounding).cpu()

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        begun = time.perf_counter()
        found = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return found, time.perf_counter() - begun

    def _count_codes(self, raw: Raw) -> None:
        for group, codes in enumerate(by_group(raw, self.tokenizer.spec)):
            self.sums["codes"][group] += torch.bincount(codes.flatten().cpu(), minlength=self.sums["codes"].shape[1])

    def _compare(self, index: Tensor, images: Tensor, originals: Tensor) -> None:
        pairs = images.to(self.device), originals.to(self.device)
        self.sums["mse"][index] = mse(*pairs).cpu()
        self._try("ssim", index, lambda: ssim(*pairs))
        if self.lpips is not None:
            self._try("lpips", index, lambda: self.lpips(*pairs))  # type: ignore[misc]

    def _try(self, metric: str, index: Tensor, work: Callable[[], Tensor]) -> None:
        """Images too small for a metric's window leave it out; the others are given."""
        if metric in self.problems:
            return
        try:
            self.sums[metric][index] = work().cpu()
        except DataError as error:
            self.problems[metric] = f"{metric}: not computed: {error}"


def positions(spec: LatentSpec) -> list[int]:
    """How many codes of an image come from each codebook (codes, residual) or scale (multiscale), [G]."""
    if spec.kind == "multiscale" and spec.scales is not None:
        return [side * side for side in spec.scales]
    return [spec.grid[0] * spec.grid[1]] * (spec.depth or 1)


def by_group(raw: Raw, spec: LatentSpec) -> list[Tensor]:
    """Codes of images, int64 [n, ...] as tokenizers encode them -> one tensor [n, ...] for each codebook or scale."""
    codes = raw["codes"] if isinstance(raw, dict) else raw
    if spec.kind == "multiscale":
        return list(codes.flatten(1).split(positions(spec), dim=1))
    return list(codes.unbind(-1)) if spec.kind == "residual" else [codes]


def score_tokenizer(
    images: Reconstructions,
    extractor: Extractor,
    references: Mapping[str, Reference],
    processes: Processes | None = None,
    progress: Progress | None = None,
    tick: Callable[[int], None] = lambda images: None,
    save_every: int = SAVE_EVERY,
) -> TokenizerResult:
    """One pass over all images, on all processes.

    Args:
        images: the reconstructions.
        extractor: what rFID is computed on.
        references: by what they are of; under `ORIGINALS` the images themselves. rFID against other statistics, such as
            ADM's of the training set, is another number and is named by them.
    """
    ask = Ask(extractor, frozenset({Need.MOMENTS}))
    result = Session(images, [ask], processes, progress, tick=tick, save_every=save_every, tally=images).run()
    if processes is not None and processes.process_index != 0:
        return TokenizerResult([], [], result, {})
    scores, problems = _distances(extractor, result, references)
    for metric in ("psnr", "ssim", "lpips"):
        score = _fidelity(metric, images)
        scores += [score] if score else []
    if "codes" in images.sums:
        scores += _codes(images.sums["codes"], images.tokenizer.spec)
    return TokenizerResult(scores, [*problems, *images.problems.values()], result, _cost(images))


def differences(images: Tensor, originals: Tensor) -> Tensor:
    """uint8 [n,3,R,R] twice -> their absolute difference, four times as strong."""
    return ((images.short() - originals.short()).abs() * AMPLIFIED).clamp(max=255).to(torch.uint8)


def _distances(
    extractor: Extractor, result: Pass, references: Mapping[str, Reference]
) -> tuple[list[Score], list[str]]:
    scores, problems = [], []
    for name, reference in references.items():
        ours = result.collected[extractor.name]
        found, more = compute(Comparison(extractor, ours, reference.collected, Rules(), digits=False), ["fid"])
        suffix = "" if name == ORIGINALS else f"_against_{name}"
        scores += [
            replace(score, name=f"r{score.name}{suffix}", metric="rfid", detail={**score.detail, "reference": name})
            for score in found
        ]
        problems += more
    return scores, problems


def _fidelity(metric: str, images: Reconstructions) -> Score | None:
    """The mean over images with its 95 % interval; None where it was not computed."""
    if metric in images.problems or (metric == "lpips" and images.lpips is None):
        return None
    detail: dict[str, Any] = {}
    values = psnr(images.sums["mse"]) if metric == "psnr" else images.sums[metric]
    name = metric
    if metric == "psnr":
        finite = values[values.isfinite()]  # an exact copy has none; all others count
        detail = {"exact_images": len(values) - len(finite), "pooled": psnr(images.sums["mse"].mean()).item()}
        values = finite if len(finite) else values
    elif metric == "ssim":
        detail = {"variant": "Gaussian 11x11, sigma 1.5, range 255"}
    elif images.lpips is not None:
        name = f"lpips_{images.lpips.net}"
        detail = {"network": images.lpips.net, "checksum": images.lpips.checksum[:12]}
    mean = values.mean().item()
    half = Z * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    interval = (mean - half, mean + half) if math.isfinite(half) else None
    return Score(name, metric, mean, interval, {**detail, "images": len(images)})


def _codes(counts: Tensor, spec: LatentSpec) -> list[Score]:
    """Usage, perplexity and size from how often each entry was used, int64 [G,V].

    Scales share one codebook, so their counts are pooled; codebooks of a residual quantiser are averaged.
    """
    key = "by_scale" if spec.kind == "multiscale" else "by_depth"
    pooled = counts.sum(0, keepdim=True) if spec.kind == "multiscale" else counts
    usage, perplexity = _usage(counts), _perplexity(counts)
    several = {key: [round(value, 4) for value in usage.tolist()]} if len(counts) > 1 else {}
    sizes = torch.tensor(positions(spec), dtype=torch.float64)
    bits = sizes.sum().item() * math.log2(counts.shape[1])
    entropy = (sizes * perplexity.log2()).sum().item()
    pixels = spec.image_size**2
    detail = {"vocabulary": counts.shape[1], "codes_counted": int(counts.sum())}
    return [
        Score("codebook_usage", "codebook_usage", _usage(pooled).mean().item(), None, {**detail, **several}),
        Score(
            "perplexity",
            "perplexity",
            _perplexity(pooled).mean().item(),
            None,
            {**detail, **({key: [round(value, 2) for value in perplexity.tolist()]} if len(counts) > 1 else {})},
        ),
        Score(
            "bits_per_image",
            "bits_per_image",
            bits,
            None,
            {"codes": int(sizes.sum()), "bits_per_pixel": bits / pixels, "entropy_bits": entropy},
        ),
    ]


def _usage(counts: Tensor) -> Tensor:
    return (counts > 0).double().mean(1)


def _perplexity(counts: Tensor) -> Tensor:
    share = counts.double() / counts.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp()


def _cost(images: Reconstructions) -> dict[str, float]:
    encoding, decoding = (images.sums[key].item() for key in ("encoding", "decoding"))
    count = len(images)
    return {
        "parameters": float(sum(parameter.numel() for parameter in images.tokenizer.parameters())),
        "seconds_per_image": (encoding + decoding) / count,
        "encoded_images_per_second": count / max(encoding, 1e-9),
        "decoded_images_per_second": count / max(decoding, 1e-9),
    }


def _cut(index: list[int], size: int) -> list[list[int]]:
    return [index[start : start + size] for start in range(0, len(index), size)]
