"""Sampling time of ARFlow: genlab against the straightforward forms of `specs/arflow.md`, in one run.

    python benchmarks/arflow.py --preset ARFlow-S/2 --batch 1 --steps 12

"genlab" is float32 with packed Linears (genlab/nn/packed.py), "genlab_bf16" under autocast; how far samples differ is
part of the report. "recurrent" computes section 2.3 of the specification line by line with a carried state: five
projections, conditions expanded to tokens, scores written out, both halves of a doubled batch integrated. "replay"
carries no state: every step feeds the whole sequence so far, as the training network would. All have the same weights.
Times are CPU seconds of the process, which other work on the machine disturbs less than it does the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.convert import arflow
from genlab.core.contracts import LatentSpec
from genlab.networks.arflow import ARFlow, ARFlowConfig
from genlab.nn.embed import time_features
from genlab.nn.packed import packed
from genlab.processes.arflow import AutoregressiveFlow, AutoregressiveFlowSampling
from samplers.noise import spawn

Model = Callable[[Tensor, Tensor, Tensor], Tensor]


class Straightforward:
    """The network as the specification writes it (sections 2.2 and 2.3), with a state that every call moves on."""

    def __init__(self, network: ARFlow):
        self.network, self.weights = network, arflow.save(network)
        self.states: list[Tensor | float] = [0.0] * len(network.blocks)

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x [B,C,H,W], t [B], label [B] -> [B,C,H,W]."""
        w, patch = self.weights, self.network.patch
        h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)  # [B,D,h,w]
        h = h.flatten(2).transpose(1, 2) + w["pos_embed"]  # [B,N,D]
        e = F.silu(F.linear(time_features(t), w["t_embedder.mlp.0.weight"], w["t_embedder.mlp.0.bias"]))
        e = F.linear(e, w["t_embedder.mlp.2.weight"], w["t_embedder.mlp.2.bias"])
        c = e + F.embedding(label, w["y_embedder.embedding_table.weight"])  # [B,D]
        for number in range(len(self.states)):
            h = self.block(number, h, c)
        shift, scale = self.modulation("final_layer", c).chunk(2, dim=-1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        h = F.linear(h, w["final_layer.linear.weight"], w["final_layer.linear.bias"])  # [B,N,p*p*C]
        rows, columns = self.network.token_grid
        h = h.view(len(x), rows, columns, patch, patch, -1)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, rows * patch, columns * patch)

    def modulation(self, prefix: str, c: Tensor) -> Tensor:
        w, name = self.weights, f"{prefix}.adaLN_modulation.1"
        return F.linear(F.silu(c), w[f"{name}.weight"], w[f"{name}.bias"])

    def block(self, number: int, h: Tensor, c: Tensor) -> Tensor:
        w, prefix = self.weights, f"blocks.{number}"
        b1, s1, g1, b2, s2, g2 = self.modulation(prefix, c)[:, None].chunk(6, dim=-1)
        h = h + g1 * self.attention(number, F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + s1) + b1, c)
        inner = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + s2) + b2
        inner = F.gelu(F.linear(inner, w[f"{prefix}.mlp.fc1.weight"], w[f"{prefix}.mlp.fc1.bias"]), approximate="tanh")
        return h + g2 * F.linear(inner, w[f"{prefix}.mlp.fc2.weight"], w[f"{prefix}.mlp.fc2.bias"])

    def attention(self, number: int, h: Tensor, c: Tensor) -> Tensor:
        def project(name: str, x: Tensor) -> Tensor:
            return F.linear(x, self.weights[f"blocks.{number}.attn.{name}.weight"])

        def rms(x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

        heads = self.network.blocks[number].attn.heads
        expanded = c[:, None].expand_as(h)  # [B,N,D]
        names = ("q_proj", "k_proj", "v_proj")
        q, k, v = (rms(project(name, h)).unflatten(-1, (heads, -1)).transpose(1, 2) for name in names)  # [B,H,N,d]
        gate = project("g_proj", h)
        a = F.logsigmoid(project("gt_proj", h + expanded)).transpose(1, 2) / 16  # [B,H,N]
        k = k / math.sqrt(k.shape[-1])
        inner = torch.softmax(q @ k.mT, dim=-1) @ v
        state = self.states[number]
        cross = a.cumsum(-1).exp()[..., None] * (q @ state) if isinstance(state, Tensor) else 0.0
        self.states[number] = a.mean(-1).exp()[..., None, None] * state + k.mT @ v
        o = rms(inner + cross).transpose(1, 2).flatten(2)
        return project("out_proj", F.silu(gate) * o)


class Replay:
    """The training network, which is given all earlier states at every step."""

    def __init__(self, network: ARFlow):
        self.network = network
        self.past: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x [B,C,H,W], t [B], label [B] -> [B,C,H,W]."""
        self.past.append((x, t))
        images, times = (torch.stack(values, dim=1) for values in zip(*self.past))
        return self.network(images, times, label)[:, -1]


def doubled(model: Model, network: ARFlow, label: Tensor, z: Tensor, options: argparse.Namespace) -> Tensor:
    """The official sampler (section 4): both halves of the batch move, and the first is kept."""
    rng = spawn(0, range(options.batch))
    rng.normal(*z.shape[1:])  # what z was drawn from
    labels = torch.cat([label, torch.full_like(label, network.null_label)])
    x = torch.cat([z, z])
    grid = torch.linspace(0, 0.96, options.steps, dtype=torch.float64).tolist()

    def guided(x: Tensor, t: float) -> Tensor:
        first = x[: len(x) // 2]
        v = model(torch.cat([first, first]), torch.full((len(x),), t), labels)
        conditional, unconditional = v.chunk(2)
        half = unconditional + options.guidance * (conditional - unconditional)
        return torch.cat([half, half])

    for t in grid[:-1]:
        dt = grid[1] - grid[0]
        noise = rng.normal(*z.shape[1:])
        x = x + (guided(x, t) * (1 + t) - x) * dt + math.sqrt(2 * (1 - t) * dt) * torch.cat([noise, noise])
    x = x + (guided(x, 0.96) * 1.96 - x) * 0.04
    return x[: len(z)]


def ours(
    network: ARFlow, label: Tensor, z: Tensor, options: argparse.Namespace, dtype: torch.dtype = torch.float32
) -> Tensor:
    rng = spawn(0, range(options.batch))
    settings = AutoregressiveFlowSampling(steps=options.steps, guidance=options.guidance)
    spec = LatentSpec("continuous", z.shape[1], (z.shape[2], z.shape[3]), 8 * z.shape[2])
    with packed(network), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return AutoregressiveFlow().sample(network, label, spec, rng, settings)


def build(options: argparse.Namespace) -> ARFlow:
    """A network of the preset's size with small random weights everywhere, so that no branch is silent."""
    torch.manual_seed(0)
    spec = LatentSpec("continuous", 4, (options.side, options.side), 8 * options.side)
    network = ARFlowConfig(preset=options.preset).build(spec, 1000).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            parameter.normal_(std=0.02)
    return network


def timed(contenders: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The best of some rounds through all contenders, in CPU seconds, and their samples."""
    seconds = dict.fromkeys(contenders, math.inf)
    samples: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.process_time()
            samples[name] = run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds, samples


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ARFlow-S/2")
    parser.add_argument("--side", type=int, default=32, help="of the latent grid")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replay", action=argparse.BooleanOptionalAction, default=True, help="its cost is quadratic")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, label = build(options), torch.arange(options.batch)
    z = spawn(0, range(options.batch)).normal(4, options.side, options.side)
    contenders: dict[str, Callable[[], Tensor]] = {
        "genlab": lambda: ours(network, label, z, options),
        "genlab_bf16": lambda: ours(network, label, z, options, torch.bfloat16),
        "recurrent": lambda: doubled(Straightforward(network), network, label, z, options),
    }
    if options.replay:
        contenders["replay"] = lambda: doubled(Replay(network), network, label, z, options)
    seconds, results = timed(contenders, options.repeats)
    report: dict[str, Any] = {
        **{key: value for key, value in vars(options).items() if key != "out"},
        "torch": torch.__version__,
        "seconds": seconds,
        "ratios": {
            name: {theirs: seconds[theirs] / seconds[name] for theirs in ("recurrent", "replay") if theirs in seconds}
            for name in ("genlab", "genlab_bf16")
        },
        "largest_difference_to_recurrent": {
            name: (samples - results["recurrent"]).abs().max().item() for name, samples in results.items()
        },
        "largest_value": results["recurrent"].abs().max().item(),
    }
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
