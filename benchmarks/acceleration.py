"""Speed and error of feature caches between sampling steps, against the exact sampler, in one run.

    python benchmarks/acceleration.py --width 128 --depth 6 --batch 4 --steps 30

The network has random weights, so errors show only that a cache is close, not how good the pictures are; give
`--run RUN` for a trained one. The rounds take turns, and each number is the best of them. Times are CPU seconds of the
process, which other work on the machine disturbs less than it does the clock.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from genlab.core.contracts import LatentSpec, Network
from genlab.networks.dit import DiT
from genlab.pretrained import from_pretrained
from genlab.processes.acceleration import CacheSettings
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from samplers.noise import spawn

CACHES = {
    "none": CacheSettings(),
    "branches_3": CacheSettings(kind="branches", interval=3),
    "branches_3_taylor_2": CacheSettings(kind="branches", interval=3, order=2),
    "first_block": CacheSettings(kind="first_block"),
    "accumulated": CacheSettings(kind="accumulated"),
}


def subject(options: argparse.Namespace) -> tuple[Network, LatentSpec, Flow]:
    """A trained run's parts, or a DiT with random weights that have something to say."""
    if options.run:
        generator = from_pretrained(options.run)
        if not isinstance(generator.process, Flow):
            raise SystemExit(f"{options.run}: a flow is needed, this is {type(generator.process).__name__}")
        return generator.network, generator.tokenizer.spec, generator.process
    torch.manual_seed(0)
    side = options.side
    sizes = {"width": options.width, "depth": options.depth, "heads": options.width // 32}
    network = DiT(grid=(side, side), channels=4, patch=2, num_classes=10, **sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.08)
    return network.eval(), LatentSpec("continuous", 4, (side, side), 8 * side), Flow()


def main() -> None:
    """Print one JSON object: seconds, speed-up and relative error of each cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a trained flow, in place of random weights")
    for name, value in {"width": 128, "depth": 6, "side": 16, "batch": 4, "steps": 30, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    network, spec, process = subject(options)
    label = torch.arange(options.batch) % max(network.num_classes, 1)

    def sample(cache: CacheSettings) -> tuple[Tensor, float]:
        settings = FlowSampling(sampler="euler", steps=options.steps, guidance=1.5, cache=cache)
        begun = time.process_time()
        tokens = process.sample(network, label, spec, spawn(0, range(options.batch)), settings)
        return tokens, time.process_time() - begun

    exact, _ = sample(CACHES["none"])
    rows: dict[str, dict[str, float]] = {name: {"seconds": float("inf")} for name in CACHES}
    for _ in range(options.rounds):
        for name, cache in CACHES.items():
            tokens, seconds = sample(cache)
            rows[name]["seconds"] = min(rows[name]["seconds"], seconds)
            rows[name]["relative_error"] = ((tokens - exact).norm() / exact.norm()).item()
    for row in rows.values():
        row["speedup"] = rows["none"]["seconds"] / row["seconds"]
    print(json.dumps({**vars(options), "caches": {n: {k: round(v, 4) for k, v in r.items()} for n, r in rows.items()}}))


if __name__ == "__main__":
    main()
