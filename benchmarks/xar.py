"""Sampling time of xAR: genlab against the straightforward form of `specs/xar.md`, in one run.

    python benchmarks/xar.py --preset xAR-B --depth 2 --batch 4 --steps 6

"genlab" is float32, "genlab_bf16" the same under autocast; how far samples differ is part of the report.
"straightforward" is sections 2.3 and 4 of the specification line by line, with the waste that its section 6 lists: keys
and values concatenated in every layer at every call, the condition expanded to tokens before its modulation, times
embedded at every call, both halves of the first cell, a call of two cells under a mask where a cell begins, a state in
float64. "per_entity" is the same with each modulation computed once for an entity and then expanded. All have the same
weights and draws. Times are CPU seconds of the process, which other work on the machine disturbs less than it does the
clock; on a GPU they are seconds of the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.contracts import LatentSpec
from genlab.networks.xar import XAR, XARConfig
from genlab.nn.embed import time_features
from genlab.processes.next_x import NextX
from genlab.processes.next_x_sampling import NextXSampling
from samplers.noise import spawn


class Straightforward:
    """The network as the specification writes it, with a cache that grows."""

    def __init__(self, network: XAR, per_token: bool):
        self.w, self.per_token = network.state_dict(), per_token
        self.halves = {"encoder": len(network.encoder_blocks), "decoder": len(network.decoder_blocks)}
        self.heads = network.encoder_blocks[0].attn.heads
        self.cos, self.sin = (table.repeat_interleave(2, dim=1) for table in network.turns[0].table.unbind(-1))
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x: Tensor, name: str | None = None) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return normed if name is None else normed * self.w[f"{name}.weight"]

    def __call__(self, x: Tensor, start: int, ticks: list[int], label: Tensor, keep: int) -> Tensor:
        """x [R,T,C] of cells at `ticks`, from `start` on -> [R,T,C]; the first `keep` tokens stay in the cache."""
        size = x.shape[1] // len(ticks)
        c = []
        for tick in ticks:
            t = self.linear("time_embed.mlp.0", time_features(torch.full(label.shape, tick, device=x.device)))
            t = self.linear("time_embed.mlp.2", F.silu(t))
            c.append(F.embedding(label, self.w["class_emb.weight"]) + t)
        end = start + x.shape[1]
        mask = torch.zeros(x.shape[1], end, device=x.device)
        mask[:size, end - size :] = 0.0 if len(ticks) == 1 else -math.inf
        h = self.linear("z_proj", x)
        for half, depth in self.halves.items():
            if half == "decoder":
                h = self.linear("decoder_embed", h)
            h = h + self.w[f"{half}_pos_embed_learned"][:, start:end]
            h = self.norm(h, "z_proj_ln") if half == "encoder" else h
            for number in range(depth):
                h = self.block(f"{half}_blocks.{number}", h, torch.stack(c, dim=1), size, start, mask, keep)
            h = self.norm(h, f"{half}_norm")
        return self.linear("pred", h)

    def block(self, name: str, h: Tensor, c: Tensor, size: int, start: int, mask: Tensor, keep: int) -> Tensor:
        if self.per_token:
            m = self.linear(f"{name}.ada_lin.1", F.silu(c.repeat_interleave(size, dim=1)))  # [R,T,6D]
        else:
            m = self.linear(f"{name}.ada_lin.1", F.silu(c)).repeat_interleave(size, dim=1)  # [R,T,6D]
        gate1, gate2, scale1, scale2, shift1, shift2 = m.chunk(6, dim=-1)
        h = h + gate1 * self.attention(name, self.norm(h) * (1 + scale1) + shift1, start, mask, keep)
        inner = self.norm(h) * (1 + scale2) + shift2
        inner = F.gelu(self.linear(f"{name}.mlp.fc1_g", inner)) * self.linear(f"{name}.mlp.fc1_x", inner)
        return h + gate2 * self.linear(f"{name}.mlp.fc2", inner)

    def attention(self, name: str, h: Tensor, start: int, mask: Tensor, keep: int) -> Tensor:
        qkv = self.linear(f"{name}.attn.qkv", h).unflatten(-1, (3, self.heads, -1))
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # 3 x [R,H,T,d]
        q, k = self.rotate(q, start), self.rotate(k, start)
        if name in self.kept:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.kept[name], (k, v)))
        if keep:
            end = k.shape[2] - h.shape[1] + keep
            self.kept[name] = (k[:, :, :end], v[:, :, :end])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return self.linear(f"{name}.attn.proj", out.transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor, start: int) -> Tensor:
        cos, sin = (table[start : start + x.shape[2]] for table in (self.cos, self.sin))
        even, odd = x[..., ::2], x[..., 1::2]
        return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


def reference(network: XAR, label: Tensor, options: argparse.Namespace, per_token: bool) -> Tensor:
    """Section 4 of the specification: Euler-Maruyama in float64, guidance that rises over the cells."""
    model, rng = Straightforward(network, per_token), spawn(0, range(options.batch), label.device)
    labels = torch.cat([label, torch.full_like(label, network.null_label)])
    count, size, channels = len(network.entities), network.entities.sizes[0], network.pred.out_features
    grid = [*torch.linspace(1, 0.04, options.steps, dtype=torch.float64).tolist(), 0.0]
    done: list[Tensor] = []
    for cell in range(count):
        stream, weight = rng.fork(cell), (options.guidance - 1) * cell / (count - 1) + 1
        x = stream.normal(size, channels).double()
        for step, (t, end) in enumerate(pairwise(grid)):
            tick = int(1000 * torch.tensor(t).float())
            now = x.float().repeat(2, 1, 1)  # [2B,n,C]
            if step == 0 and cell:
                both = torch.cat([done[-1].repeat(2, 1, 1), now], dim=1)  # [2B,2n,C]
                v = model(both, (cell - 1) * size, [0, tick], labels, keep=size)[:, size:]
            else:
                v = model(now, cell * size, [tick], labels, keep=0)
            conditional, unconditional = v.chunk(2)
            guided = unconditional + weight * (conditional - unconditional) if weight > 1 else conditional
            x = x + ((2 - t) * guided + x) * (end - t)
            if step < options.steps - 1:
                x = x + math.sqrt(2 * t) * math.sqrt(t - end) * stream.normal(size, channels)
        done.append(x.float())
    return network.entities.restore(torch.cat(done, dim=1))


def ours(network: XAR, label: Tensor, options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> Tensor:
    settings = NextXSampling(steps=options.steps, guidance=options.guidance)
    spec = LatentSpec("continuous", 16, network.entities.grid, 16 * options.side)
    with torch.autocast(label.device.type, dtype, enabled=dtype != torch.float32):
        return NextX().sample(network, label, spec, spawn(0, range(options.batch), label.device), settings)


def timed(contenders: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The best of some rounds through all contenders, in seconds, and their samples."""
    seconds = dict.fromkeys(contenders, math.inf)
    samples: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            clock = time.process_time
            if torch.cuda.is_available():
                clock = time.perf_counter
                torch.cuda.synchronize()
            start = clock()
            samples[name] = run().cpu()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds, samples


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="xAR-B")
    parser.add_argument("--depth", type=int, default=2, help="blocks of each half; 0: the preset's")
    parser.add_argument("--side", type=int, default=16, help="of the latent grid")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=2.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    depths = {"encoder_depth": options.depth, "decoder_depth": options.depth} if options.depth else {}
    spec = LatentSpec("continuous", 16, (options.side, options.side), 16 * options.side)
    network = XARConfig(preset=options.preset, **depths).build(spec, 1000).eval().to(options.device)
    label = torch.arange(options.batch, device=options.device)
    contenders: dict[str, Callable[[], Tensor]] = {
        "genlab": lambda: ours(network, label, options),
        "genlab_bf16": lambda: ours(network, label, options, torch.bfloat16),
        "straightforward": lambda: reference(network, label, options, per_token=True),
        "per_entity": lambda: reference(network, label, options, per_token=False),
    }
    seconds, results = timed(contenders, options.repeats)
    report: dict[str, Any] = {
        **{key: value for key, value in vars(options).items() if key != "out"},
        "torch": torch.__version__,
        "seconds": seconds,
        "ratios": {
            name: {theirs: seconds[theirs] / seconds[name] for theirs in ("straightforward", "per_entity")}
            for name in ("genlab", "genlab_bf16")
        },
        "largest_difference_to_straightforward": {
            name: (samples - results["straightforward"]).abs().max().item() for name, samples in results.items()
        },
        "largest_value": results["straightforward"].abs().max().item(),
    }
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
