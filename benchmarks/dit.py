"""Sampling time of DiT and SiT: genlab against the straightforward form of `specs/dit.md` and `sit.md`, in one run.

    python benchmarks/dit.py --preset DiT-S/2 --batch 2 --steps 10 --out benchmarks/results/dit-cpu.json

The straightforward form carries both halves of the guided batch through the sampler and runs both at every step, with a
scale of 1 outside the guidance interval; it conditions every block anew at every call, writes attention, norms and
modulation out, and for the SDE calls the network for the drift and again for the score. Weights, noise and arithmetic
are the same, so samples are, too. Ratios are given with and without the guidance interval, and "eager" is genlab
without packed Linears (genlab/nn/packed.py), which matter on processors where torch's own float32 product is slow.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.contracts import LatentSpec
from genlab.networks.dit import DiT, DiTConfig
from genlab.nn.embed import time_features
from genlab.nn.packed import packed
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from samplers.noise import spawn

LAST = 0.04  # length of the SDE's last step


class Straightforward:
    """The guided network on 2n rows, layer by layer as section 2 of the specification writes it."""

    def __init__(self, network: DiT, options: argparse.Namespace):
        self.network, self.weights, self.options = network, network.state_dict(), options

    def __call__(self, x: Tensor, t: float, label: Tensor, clean: float) -> Tensor:
        """x [2n,C,H,W], t in the network's unit, label [2n] -> [2n,C',H,W]; `clean` is the time from 0 to 1 at data."""
        half = len(x) // 2
        out = self.forward(torch.cat([x[:half], x[:half]]), torch.full((len(x),), t), label)
        low, high = self.options.interval
        scale = self.options.guidance if low <= clean <= high else 1.0
        conditional, unconditional = out[:, :3].chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return torch.cat([torch.cat([guided, guided]), out[:, 3:]], dim=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        w, patch = self.weights, self.network.patch
        h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
        h = h.flatten(2).transpose(1, 2) + w["pos_embed"]  # [B,T,D]
        e = F.silu(self.linear("t_embedder.mlp.0", time_features(t)))
        c = self.linear("t_embedder.mlp.2", e) + F.embedding(label, w["y_embedder.embedding_table.weight"])
        for number in range(len(self.network.blocks)):
            h = self.block(f"blocks.{number}", h, c)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", F.silu(c))[:, None].chunk(2, dim=-1)
        h = self.linear("final_layer.linear", self.norm(h) * (1 + scale) + shift)
        rows, columns = self.network.token_grid
        h = h.view(len(x), rows, columns, patch, patch, -1)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, rows * patch, columns * patch)

    def block(self, name: str, h: Tensor, c: Tensor) -> Tensor:
        vectors = self.linear(f"{name}.adaLN_modulation.1", F.silu(c))[:, None]
        s1, k1, g1, s2, k2, g2 = vectors.chunk(6, dim=-1)
        h = h + g1 * self.attention(name, self.norm(h) * (1 + k1) + s1)
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(h) * (1 + k2) + s2), approximate="tanh")
        return h + g2 * self.linear(f"{name}.mlp.fc2", hidden)

    def attention(self, name: str, h: Tensor) -> Tensor:
        heads = self.network.blocks[0].attn.heads
        q, k, v = self.linear(f"{name}.attn.qkv", h).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, dim=-1)  # [B,H,T,T]
        return self.linear(f"{name}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    @staticmethod
    def norm(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)


def plain(kind: str, model: Straightforward, label: Tensor, options: argparse.Namespace) -> Tensor:
    """The official loops (section 4) on 2n rows."""
    network, steps = model.network, options.steps
    rng = spawn(0, range(options.batch))
    z = rng.normal(4, options.side, options.side)
    x, labels = torch.cat([z, z]), torch.cat([label, torch.full_like(label, network.null_label)])

    def noise() -> Tensor:
        return rng.normal(4, options.side, options.side).repeat(2, 1, 1, 1)

    def velocity(x: Tensor, t: float) -> Tensor:
        return model(x, t, labels, t)[:, :4]

    if kind == "ode":
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
        for t, end in pairwise(times):
            x = x + (end - t) * velocity(x, t)
    if kind == "sde":
        times = torch.linspace(0, 1 - LAST, steps, dtype=torch.float64).tolist()
        for t, end in pairwise(times):
            drift = velocity(x, t) + (1 - t) * _score(velocity(x, t), x, t)  # two calls
            x = x + drift * (end - t) + math.sqrt(2 * (1 - t) * (end - t)) * noise()
        t = times[-1]
        x = x + (velocity(x, t) + (1 - t) * _score(velocity(x, t), x, t)) * LAST
    if kind == "ddpm":
        chain = Diffusion(variance="learned_range").chain(str(steps))
        for k in reversed(range(steps)):
            link, step = chain[k], float(chain.timesteps[k])
            out = model(x, step, labels, 1 - step / 1000)
            data = (x - link.sigma * out[:, :4]) / link.alpha
            share = (out[:, 4:] + 1) / 2
            log_variance = share * link.log_beta + (1 - share) * link.log_posterior_variance
            x = link.mean_data * data + link.mean_state * x
            x = x + torch.exp(0.5 * log_variance) * noise() if k else x
    return x[: len(label)]


def _score(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    return (t * velocity - x) / (1 - t)


def ours(kind: str, network: DiT, label: Tensor, options: argparse.Namespace, pack: bool = True) -> Tensor:
    """genlab's sampler."""
    shared: dict[str, Any] = {"steps": options.steps, "guidance": options.guidance, "guidance_channels": 3}
    shared["guidance_interval"] = options.interval
    spec = LatentSpec("continuous", 4, (options.side, options.side), 8 * options.side)
    rng = spawn(0, range(options.batch))
    with packed(network) if pack else nullcontext():
        if kind == "ddpm":
            settings = DiffusionSampling(sampler="ddpm", **shared)
            return Diffusion(variance="learned_range").sample(network, label, spec, rng, settings)
        sampler = "euler" if kind == "ode" else "euler_maruyama"
        return Flow().sample(network, label, spec, rng, FlowSampling(sampler=sampler, **shared))


def build(options: argparse.Namespace) -> DiT:
    """A network of the preset's size with small random weights everywhere, so that no branch is silent."""
    torch.manual_seed(0)
    spec = LatentSpec("continuous", 4, (options.side, options.side), 8 * options.side)
    network = DiTConfig(preset=options.preset, learn_sigma=True).build(spec, 1000).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            parameter.normal_(std=0.02)
    return network


def measure(kind: str, interval: tuple[float, float], network: DiT, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of the straightforward form, of genlab, and of genlab without packing; the best of some rounds."""
    options.interval = interval
    label, model = torch.arange(options.batch), Straightforward(network, options)
    contenders: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(kind, model, label, options),
        "genlab": lambda: ours(kind, network, label, options),
        "eager": lambda: ours(kind, network, label, options, pack=False),
    }
    seconds = dict.fromkeys(contenders, math.inf)
    samples: dict[str, Tensor] = {}
    for _ in range(options.repeats):
        for name, run in contenders.items():
            start = time.process_time()
            samples[name] = run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    size = samples["plain"].abs().max()
    return {
        "sampler": kind,
        "guidance_interval": interval,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratio": round(seconds["plain"] / seconds["genlab"], 2),
        "ratio_eager": round(seconds["plain"] / seconds["eager"], 2),
        "largest_relative_difference": ((samples["genlab"] - samples["plain"]).abs().max() / size).item(),
    }


@torch.no_grad()
def main() -> None:
    """Print one JSON line for each sampler and interval, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="DiT-S/2")
    parser.add_argument("--side", type=int, default=32, help="of the latent grid")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = build(options)
    cases = [(kind, interval) for kind in ("ddpm", "ode", "sde") for interval in ((0.0, 1.0), (0.3, 1.0))]
    rows = []
    for kind, interval in cases:
        rows.append(measure(kind, interval, network, options))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        about = {key: value for key, value in vars(options).items() if key not in ("out", "interval")}
        about |= {"torch": torch.__version__, "hardware": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
