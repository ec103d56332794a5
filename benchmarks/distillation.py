"""A distilled generator against its teacher: images a second, and what training it holds in memory.

    python benchmarks/distillation.py runs/digits-dmd2_flow --images 256

Both sample with their own default settings from the same seeds, in turns; each number is the best of its rounds, in CPU
seconds of the process where there is no GPU, which other work disturbs less than the clock. Memory is what the roles'
tensors come to (weights; gradients, two moments and averages of what is trained), and the peak of three real steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from genlab import config as configs
from genlab.commands.plans import plan_generator
from genlab.commands.train import build_loop
from genlab.core.generator import Generator
from genlab.pretrained import DESCRIPTION, from_pretrained
from genlab.training.log import peak_memory
from samplers.noise import spawn

GIB = 2**30


def rate(generator: Generator, images: int) -> float:
    """Images a second."""
    seeds = spawn(0, range(images), generator.device)
    label = torch.arange(images, device=generator.device) % max(generator.network.num_classes, 1)
    cuda = generator.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    begun = clock()
    generator.sample(label, seeds)
    if cuda:
        torch.cuda.synchronize()
    return images / (clock() - begun)


def memory(run: Path) -> dict[str, float]:
    """GiB of the roles' tensors, and the peak of three training steps beyond what was held before."""
    config = configs.load_run(run / "config.yaml")
    assert isinstance(config, configs.RunConfig), "a distilled generator's run"
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(config.training.precision, config.training.precision))
    before = peak_memory(accelerator.device)
    source = config.data.build()
    plan = plan_generator(config, source)
    parts = {}
    for name, role in plan.objective.roles().items():
        size = sum(p.numel() * p.element_size() for p in role.network.parameters())
        parts[name] = size * (4 + len(role.ema) if role.optimizer else 1) / GIB
    with tempfile.TemporaryDirectory() as folder:
        loop = build_loop(config, source, plan, accelerator, Path(folder))
        feed = loop.batches(0, loop.micro)
        for _ in range(3):
            loop.step(feed)
    return {**parts, "sum": sum(parts.values()), "peak": peak_memory(accelerator.device) - before}


def main() -> None:
    """Print one JSON object: images a second of both, their ratio, and memory in GiB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the distilled run's folder")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    description = json.loads((options.run / DESCRIPTION).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"device": device, "threads": torch.get_num_threads(), "memory_gib": memory(options.run)}
    student = from_pretrained(options.run, device, trust=True)
    teacher = from_pretrained(description["distilled"]["teacher"], device, trust=True)
    rate(student, options.images)  # warm-up
    rates = [(rate(teacher, options.images), rate(student, options.images)) for _ in range(options.rounds)]
    found["teacher"], found["student"] = (max(column) for column in zip(*rates))
    found["ratio"] = found["student"] / found["teacher"]
    print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}))


if __name__ == "__main__":
    main()
