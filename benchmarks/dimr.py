"""DiMR's forward against the straightforward form of the paper's description, with the same weights, in one run.

    python benchmarks/dimr.py --threads 1 --out benchmarks/results/dimr-cpu.json

The straightforward form evaluates each vector of time when a norm needs it (looking first whether all samples share the
time), keeps all features of a stage and concatenates them, writes attention and norms out, and guides by two forwards.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.networks.dimr import PRESETS, DiMR
from genlab.networks.dimr_blocks import TransformerBlock
from genlab.networks.dimr_stage import Stage
from genlab.nn.packed import packed
from genlab.processes.guidance import Guidance, guide

SIZES = {  # name -> stages, grid, batch
    "digits": (
        [
            {"block": "transformer", "width": 128, "depth": 5, "patch": 2, "heads": 4},
            {"block": "convnext", "width": 64, "depth": 3, "kernel": 3},
        ],
        8,
        8,
    ),
    "small": (
        [
            {"block": "transformer", "width": 240, "depth": 39, "patch": 2, "heads": 4},
            {"block": "convnext", "width": 120, "depth": 21},
        ],
        16,
        1,
    ),
    "DiMR-XL/2R": (PRESETS["DiMR-XL/2R"], 32, 1),
}


class Straightforward:
    """The same function of the same parameters as `network`, step by step."""

    def __init__(self, network: DiMR):
        self.network = network
        times = network.times
        self.vectors = list(
            zip(*(p.split(times.widths) for p in (times.noisy, times.clean, times.slope, times.offset)))
        )

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.c = t / 500 - 1
        features: list[Tensor] = []
        for stage in self.network.stages:
            h, features = self.stage(stage, x, label, features)
        return stage.head(self.layer_norm(h, stage.head_norm.slots).permute(0, 3, 1, 2))

    def vector(self, slot: int, x: Tensor) -> Tensor:
        noisy, clean, slope, offset = self.vectors[slot]
        c = self.c[:1] if bool((self.c == self.c[0]).all()) else self.c
        share = torch.sigmoid(c[:, None] * (1 + slope) + offset)
        return (clean + share * (noisy - clean)).view(len(c), *[1] * (x.dim() - 2), -1)

    def layer_norm(self, x: Tensor, slots: dict[str, int]) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * self.vector(slots["weight"], x) + self.vector(slots["bias"], x)

    def rms_norm(self, x: Tensor, norm: nn.Module) -> Tensor:
        x = x / (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5 + 1e-8)
        return x * self.vector(norm.slots["scale"], x)

    def block(self, block: nn.Module, x: Tensor) -> Tensor:
        if isinstance(block, TransformerBlock):
            h = self.rms_norm(x, block.norm1)
            q, k, v = (
                part.unflatten(2, (block.attn.heads, -1)).transpose(1, 2) for part in block.attn.qkv(h).chunk(3, dim=2)
            )
            weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
            x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        else:
            x = x + block.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        h = self.rms_norm(x, block.norm2)
        return x + block.mlp.proj(F.gelu(block.mlp.gate(h)) * block.mlp.features(h))

    def stage(self, stage: Stage, x: Tensor, label: Tensor, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = stage._embed(x)
        grid = h.shape[1:3]
        if stage.upsample is not None:
            up = stage.upsample
            z = up.project.linear(self.layer_norm(torch.cat(features, dim=-1), up.project.slots))
            z = z.unflatten(3, (up.ratio, up.ratio, -1)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
            h = h + self.layer_norm(z, up.norm.slots)
        if stage.tokens:
            h = torch.cat([stage.classes(label)[:, None], h.flatten(1, 2)], dim=1)
        kept, skips, half = [h], [], len(stage.blocks) // 2
        for index, block in enumerate(stage.blocks):
            if index > half:
                h = stage.skip_denses[index - half - 1](torch.cat([h, skips.pop()], dim=-1))
            h = self.block(block, h)
            kept.append(h)
            if index < half:
                skips.append(h)
        if stage.tokens:
            kept = [h[:, 1:].unflatten(1, grid) for h in kept]
        return kept[-1], kept


def alternately(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """The best seconds of each call, taken in turns after a warm-up."""
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for index, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                best[index] = min(best[index], time.perf_counter() - begun)
    return best


@torch.no_grad()
def measure(name: str, repeats: int, device: torch.device, compile: bool) -> dict[str, float | str]:
    """Milliseconds of both forms of a forward, of both with guidance, and how far apart their results are.

    With `compile` ours goes through torch.compile; else, on the CPU, its Linears are packed, as in sampling, and
    "eager" is the ratio without that.
    """
    stages, side, batch = SIZES[name]
    torch.manual_seed(0)
    network = DiMR((side, side), 4, stages, num_classes=10).to(device).eval()
    for vector in network.times.parameters():
        vector.add_(torch.randn_like(vector), alpha=0.1)
    plain = Straightforward(deepcopy(network))
    if compile:
        network.compile(fullgraph=True)
    x = torch.randn(batch, 4, side, side, device=device)
    t, label = torch.full((batch,), 400.0, device=device), torch.arange(batch, device=device) % 10
    null = torch.full_like(label, network.null_label)
    guided = guide(network, label, Guidance(1.4, interval=(0.0, 1000.0)))

    def guided_plainly() -> Tensor:
        conditional = plain(x, t, label)
        return conditional + 0.4 * (conditional - plain(x, t, null))

    def vectors_plainly() -> None:
        for slot in range(len(plain.vectors)):
            plain.vector(slot, x)

    expected = guided_plainly()
    error = (guided(x, 400.0) - expected).abs().max() / expected.abs().max()
    with nullcontext() if compile else packed(network):
        plain_s, ours_s, plain_guided_s, guided_s, plain_vectors_s, vectors_s = alternately(
            repeats,
            lambda: plain(x, t, label),
            lambda: network(x, t, label),
            guided_plainly,
            lambda: guided(x, 400.0),
            vectors_plainly,
            lambda: network.times(plain.c),
        )
    plain_eager_s, eager_s = alternately(repeats, lambda: plain(x, t, label), lambda: network(x, t, label))
    return {
        "size": name,
        "compiled": compile,
        "batch": batch,
        "max_relative_difference": error.item(),
        "forward_ms": [round(1e3 * s, 2) for s in (plain_s, ours_s)],
        "forward_ratio": round(plain_s / ours_s, 2),
        "forward_ratio_eager": round(plain_eager_s / eager_s, 2),
        "guided_ms": [round(1e3 * s, 2) for s in (plain_guided_s, guided_s)],
        "guided_ratio": round(plain_guided_s / guided_s, 2),
        "vectors_ms": [round(1e3 * s, 2) for s in (plain_vectors_s, vectors_s)],
        "vectors_ratio": round(plain_vectors_s / vectors_s, 2),
    }


def main() -> None:
    """Print one JSON line a size, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="run ours through torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    rows = [measure(name, arguments.repeats, device, arguments.compile) for name in arguments.sizes]
    for row in rows:
        print(json.dumps(row))
    if arguments.out:
        about = {"hardware": hardware, "threads": arguments.threads, "torch": torch.__version__, "order": "plain, ours"}
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
