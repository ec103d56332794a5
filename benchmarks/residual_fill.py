"""Codebook searches of ResGen's sampling: what is revealed alone, against all masked codes at each step, in one run.

    python benchmarks/residual_fill.py --positions 64 --depth 16 --vocab 16384 --channels 256 --steps 63

"literal" is the order of section 6 of `specs/resgen.md`: every step codes all masked depths and discards most of them.
"genlab" first decides what is revealed, which does not depend on the codes. Both have the same vectors and scores, and
that their codes agree is part of the report. The network is left out, as it is the same for both. Times are CPU seconds
of the process, which other work on the machine disturbs less than it does the clock; on a GPU they are seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise

import torch
from torch import Tensor

from samplers.noise import spawn
from samplers.residual_fill import plan, quantise, reveal, visible


class Books:
    """Code vectors [D,V,C] whose searches are counted."""

    def __init__(self, tables: Tensor):
        self.tables, self.biases, self.searches = tables, tables.square().sum(-1) * -0.5, 0

    def __call__(self, depth: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        self.searches += len(vectors)
        codes = torch.addmm(self.biases[depth], vectors, self.tables[depth].T).argmax(1)
        return codes, self.tables[depth][codes]


def fill(books: Books, options: argparse.Namespace, literal: bool) -> tuple[Tensor, float]:
    """The codes [B,L,D] of random vectors, and the seconds that it took."""
    positions, depth = options.positions, options.depth
    rng = spawn(0, range(options.batch), options.device)
    codes = torch.zeros(options.batch, positions, depth, dtype=torch.int64, device=options.device)
    masked = torch.full_like(codes[..., 0], depth)
    seconds = 0.0
    for before, after in pairwise(plan(options.schedule, positions * depth, options.steps)):
        latent = rng.normal(positions, options.channels)
        confidence, noise = rng.normal(positions, 1), rng.normal(positions, depth)
        start = _now(options.device)
        count = reveal(confidence, masked, noise, before - after, 1.0)
        first = depth - masked
        if literal:
            everything, _ = quantise(latent, codes, first, masked, books, positions)
            shown = visible(masked - count, depth) & ~visible(masked, depth)
            codes = torch.where(shown, everything, codes)
        else:
            codes, _ = quantise(latent, codes, first, count, books, before - after)
        masked = masked - count
        seconds += _now(options.device) - start
    return codes, seconds


def _now(device: str) -> float:
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Print one JSON object: searches and seconds of both orders, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"positions": 64, "depth": 16, "vocab": 1024, "channels": 64, "steps": 63, "batch": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--schedule", default="circle", choices=["circle", "cosine", "arccos", "linear"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(options.depth, options.vocab, options.channels, generator=generator)
    tables *= 0.8 ** torch.arange(options.depth).view(-1, 1, 1)
    results, found = {}, {}
    for name in ("literal", "genlab"):
        books = Books(tables.to(options.device))
        found[name], seconds = fill(books, options, name == "literal")
        results[name] = {"searches": books.searches, "seconds": round(seconds, 3)}
    ratios = {key: round(results["literal"][key] / results["genlab"][key], 2) for key in ("searches", "seconds")}
    same = torch.equal(found["literal"], found["genlab"])
    print(json.dumps({**vars(options), **results, "literal / genlab": ratios, "same_codes": same}, indent=1))


if __name__ == "__main__":
    main()
