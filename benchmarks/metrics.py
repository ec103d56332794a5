"""Time and memory of KID, precision/recall and the Frechet distance: genlab against torch-fidelity, in one run.

    python benchmarks/metrics.py --n 10000 --d 2048 --threads 2 --out benchmarks/results/metrics-cpu.json

Each contender runs in a process of its own on the same features, so its peak memory is its own. Features are like
Inception's: not negative, sparse, with a few strong directions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.evaluation.frechet import Gaussian, frechet_distance, frechet_from_features
from genlab.evaluation.joint import pair_scores


def features(count: int, width: int, seed: int, shift: float) -> Tensor:
    """Features [count, width] float32, made in slices so that they cost little more memory than they hold."""
    mixing = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) * 0.09
    rng = torch.Generator().manual_seed(seed)
    result = torch.empty(count, width)
    for part in result.split(500):
        noise = torch.randn(len(part), width, generator=rng).mul_(0.3).add_(shift)
        part.copy_(noise.addmm_(torch.randn(len(part), 64, generator=rng), mixing).clamp_(min=0))
    return result


def ours(x: Tensor, y: Tensor, fast: bool = True) -> dict[str, float]:
    scores = pair_scores(x, y, fast=fast)
    return {"kid": scores.kid.mean, "precision": scores.manifold.precision, "recall": scores.manifold.recall}


def ours_float32(x: Tensor, y: Tensor) -> dict[str, float]:
    return ours(x, y, fast=False)


def torch_fidelity(x: Tensor, y: Tensor) -> dict[str, float]:
    # imported here, and not timed, so that the others' memory is without it
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    start = time.perf_counter()
    kid = kid_features_to_metric(y, x, verbose=False)
    middle = time.perf_counter()
    prc = prc_features_to_metric(y, x, verbose=False)
    return {
        "kid": kid["kernel_inception_distance_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
        "kid_seconds": middle - start,
        "prc_seconds": time.perf_counter() - middle,
        "seconds": time.perf_counter() - start,
    }


def frechet(x: Tensor, y: Tensor) -> dict[str, float]:
    """From full-rank statistics, from singular ones, and from features with n < d; one thread."""
    torch.set_num_threads(1)
    width = x.shape[1]
    rng = torch.Generator().manual_seed(1)
    roots = [torch.randn(rank, width, dtype=torch.float64, generator=rng) for rank in (2 * width, width // 2)]
    full, singular = (root.mT @ root / len(root) for root in roots)
    mean = torch.zeros(width)
    result = {}
    for name, sigma in (("full_rank", full), ("singular", singular)):
        start = time.perf_counter()
        frechet_distance(Gaussian.from_statistics(mean, sigma), Gaussian.from_statistics(mean, 1.1 * sigma))
        result[f"{name}_statistics_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    frechet_from_features(x[:200], y[:200])
    return {**result, "features_200_seconds": time.perf_counter() - start}


CONTENDERS: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "genlab": ours,
    "genlab_float32": ours_float32,
    "torch_fidelity": torch_fidelity,
    "frechet": frechet,
}


def run(name: str, count: int, width: int, threads: int) -> dict[str, Any]:
    """One contender in this (fresh) process: its numbers, seconds, and memory in GB."""
    torch.set_num_threads(threads)
    x, y = features(count, width, 1, 0.0), features(count, width, 2, 0.02)
    torch.mm(x[:512], y[:512].T)  # threads and kernels are up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    numbers = CONTENDERS[name](x, y)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, **numbers, "peak_gb": peak * 1024e-9, "added_gb": (peak - before) * 1024e-9}


def hardware(threads: int) -> dict[str, Any]:
    """What the numbers were made on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    amx = any("amx_bf16" in line for line in lines)
    return {"cpu": model, "amx_bf16": amx, "threads": threads, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contender; the quickest counts")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in list(CONTENDERS) * options.repeats:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(run, (name, options.n, options.d, options.threads))
        print(f"{name:16}", {key: float(f"{value:.4g}") for key, value in result.items()}, flush=True)
        results[name] = min(result, results.get(name, result), key=lambda one: one["seconds"])
    theirs = results["torch_fidelity"]["seconds"]
    ratios = {name: theirs / results[name]["seconds"] for name in ("genlab", "genlab_float32")}
    print("times as quick as torch-fidelity (KID + precision/recall):", {k: round(v, 1) for k, v in ratios.items()})
    report = {"n": options.n, "d": options.d, **hardware(options.threads), "ratios": ratios, "results": results}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
