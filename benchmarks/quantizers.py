"""The codebook search against cdist and argmin: time and peak memory. `python benchmarks/quantizers.py [--rows N]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from genlab.tokenization.quantizers.codebook import nearest


def naive(z: Tensor, table: Tensor) -> Tensor:
    """All distances at once."""
    return torch.cdist(z, table).argmin(1)


def measure(search: Callable[[Tensor, Tensor], Tensor], z: Tensor, table: Tensor) -> tuple[float, float]:
    """Seconds (best of three), and MiB of extra memory at the peak."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        search(z, table)
        _wait(z)
        seconds.append(time.perf_counter() - start)
    return min(seconds), _peak(search, z, table) / 2**20


def _wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize()


def _peak(search: Callable[[Tensor, Tensor], Tensor], z: Tensor, table: Tensor) -> float:
    """Bytes: on a GPU the allocator's, on a CPU the running sum of the profiler's allocations."""
    if z.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        search(z, table)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        search(z, table)
    now = peak = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=16384)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = parser.parse_args()
    for channels in (8, 256):
        rng = torch.Generator().manual_seed(0)
        z = torch.randn(args.rows, channels, generator=rng).to(device)
        table = torch.randn(args.vocab, channels, generator=rng).to(device)
        (ours, small), (theirs, large) = measure(nearest, z, table), measure(naive, z, table)
        same = (nearest(z, table) == naive(z, table)).float().mean().item()
        print(
            f"{device}, {args.rows} vectors, {args.vocab} codes of {channels}: {ours:.3f} s and {small:.0f} MiB; "
            f"cdist {theirs:.3f} s and {large:.0f} MiB; {theirs / ours:.2f} x faster, {same:.4%} equal"
        )


if __name__ == "__main__":
    main()
