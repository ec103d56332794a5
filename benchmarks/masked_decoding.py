"""Generation with masked codes: ENAT against the plain transformer and its own definition, in one run.

    python benchmarks/masked_decoding.py --preset ENAT-L --rows 1

"genlab" is ENAT as sampling runs it: visible positions are encoded once, and then re-projected. "plain" is the
transformer of as many blocks of the same width that recomputes every position at every step. "straightforward" is
section 2 of `specs/enat.md` line by line: positions taken by boolean masks, modulations and context norms computed at
every step and in every block, attention written out, logits of all positions. It has ENAT's weights and must give its
logits. All reveal the same positions in the same order. A row is an image under one label; guidance takes two. Times
are CPU seconds of the process, which other work on the machine disturbs less than it does the clock; multiplications
are counted on the meta device.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from genlab.core.contracts import LatentSpec
from genlab.networks.enat import ENAT, ENATConfig
from genlab.networks.masked import MaskedNetwork
from genlab.networks.masked_transformer import MaskedTransformerConfig
from samplers.unmasking import SCHEDULES, counts

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens [B,L], masked [B,m] and fresh positions [B,n] -> logits [B,m,V]."""


class Straightforward:
    """ENAT as the specification writes it; keeps features and masks of the step before."""

    def __init__(self, network: ENAT, label: Tensor):
        self.w, self.label, self.mask_token = network.state_dict(), label, network.mask_token
        self.depths = network.encoder_depth, len(network.blocks)
        first: Any = network.blocks[0]
        self.heads: int = first.attn.heads
        self.previous: tuple[Tensor, Tensor] | None = None

    def __call__(self, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        w, rows = self.w, len(tokens)
        x = w["x_embedder.word_embeddings.weight"][tokens] + w["x_embedder.position_embeddings.weight"]
        x = self.norm("x_embedder.LayerNorm", x, 1e-6)
        c = w["y_embedder.embedding_table.weight"][self.label]
        hidden = tokens == self.mask_token
        old = torch.zeros_like(hidden)
        if self.previous is not None:
            old = ~self.previous[1]
            f = self.previous[0][old].view(rows, -1, x.shape[2])
            f = f + self.mlp("prev_proj.mlp", self.norm("prev_proj.norm", f, 1e-6))
        else:
            f = x[old].view(rows, 0, x.shape[2])
        new = ~hidden & ~old
        h = x[new].view(rows, -1, x.shape[2])
        for number in range(self.depths[0]) if new.any() else ():
            h = self.block(f"blocks.{number}", h, c, f)
        out = torch.empty_like(x)
        out[old], out[new] = f.flatten(0, 1), h.flatten(0, 1)
        visible = out[~hidden].view(rows, -1, x.shape[2])
        m = x[hidden].view(rows, -1, x.shape[2])
        for number in range(*self.depths):
            m = self.block(f"blocks.{number}", m, c, visible)
        out[hidden] = m.flatten(0, 1)
        self.previous = out, hidden
        t = self.norm("mlm_layer.ln", F.gelu(self.linear("mlm_layer.fc", self.norm("norm", out, 1e-5))), 1e-5)
        logits = (t @ w["x_embedder.word_embeddings.weight"].T + w["mlm_layer.bias"])[..., :-1]  # [B,L,V]
        return logits[hidden].view(rows, -1, logits.shape[2])

    def block(self, name: str, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        m = self.linear(f"{name}.adaLN_modulation.1", F.silu(c))[:, None].chunk(8, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + m[1]) + m[0]
        g = F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + m[3]) + m[2]
        q = self.linear(f"{name}.attn.q", h).unflatten(2, (self.heads, -1)).transpose(1, 2)
        kv = torch.cat([self.linear(f"{name}.attn.kv.A", g), self.linear(f"{name}.attn.kv.B", h)], dim=1)
        k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in kv.chunk(2, dim=2))
        attention = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + m[4] * self.linear(f"{name}.attn.proj", attention.transpose(1, 2).flatten(2))
        return x + m[7] * self.mlp(f"{name}.mlp", F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + m[6]) + m[5])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh"))

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)


def inputs(options: argparse.Namespace, vocab: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What each step of a generation is given, with random codes revealed in a random order."""
    generator = torch.Generator().manual_seed(0)
    length = options.side**2
    codes = torch.randint(vocab, (options.rows, length), generator=generator)
    order = torch.rand(options.rows, length, generator=generator).argsort(1)
    before = length
    for left in [length, *counts(SCHEDULES["cosine"], length, options.steps)[:-1]]:
        masked, fresh = order[:, :left].sort(1).values, order[:, left:before].sort(1).values
        yield codes.scatter(1, masked, vocab), masked, fresh
        before = left


def build(config: Any, options: argparse.Namespace) -> MaskedNetwork:
    """A network with small random weights everywhere, so that no branch is silent."""
    torch.manual_seed(0)
    spec = LatentSpec("codes", 256, (options.side, options.side), 16 * options.side, vocab=1024)
    network: MaskedNetwork = config.build(spec, 1000).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "adaLN" in name:
            parameter.normal_(std=0.02)
    return network


def generate(step: Step, options: argparse.Namespace, device: str = "cpu") -> list[Tensor]:
    """The logits of every step."""
    return [step(*(part.to(device) for part in given)) for given in inputs(options, 1024)]


def gmac(config: Any, options: argparse.Namespace) -> float:
    """Billions of multiplications of one generation, modulations included."""
    with torch.device("meta"):
        network, label = build(config, options), torch.zeros(options.rows, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        generate(network.decoder(label).step, options, "meta")
    return counter.get_total_flops() / 2e9


def timed(contenders: dict[str, Callable[[], Step]], options: argparse.Namespace) -> tuple[dict[str, float], Any]:
    """The best of some rounds through all contenders, in CPU seconds, and their logits."""
    seconds, logits = dict.fromkeys(contenders, math.inf), {}
    for _ in range(options.repeats):
        for name, start_over in contenders.items():
            start = time.process_time()
            logits[name] = generate(start_over(), options)
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds, logits


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ENAT-L")
    parser.add_argument("--side", type=int, default=16, help="of the grid of codes")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ENATConfig(preset=options.preset)
    depth = config.encoder_depth + config.decoder_depth
    plain_config = MaskedTransformerConfig(width=config.width, heads=config.heads, depth=depth)
    network, plain = build(config, options), build(plain_config, options)
    assert isinstance(network, ENAT)
    label = torch.arange(options.rows)
    contenders: dict[str, Callable[[], Step]] = {
        "genlab": lambda: network.decoder(label).step,
        "straightforward": lambda: Straightforward(network, label),
        "plain": lambda: plain.decoder(label).step,
    }
    seconds, logits = timed(contenders, options)
    macs = {"genlab": gmac(config, options), "plain": gmac(plain_config, options)}
    report: dict[str, Any] = {
        **{key: value for key, value in vars(options).items() if key != "out"},
        "torch": torch.__version__,
        "seconds": seconds,
        "gmac": macs,
        "ratios": {
            "seconds": {name: seconds[name] / seconds["genlab"] for name in ("plain", "straightforward")},
            "gmac": {"plain": macs["plain"] / macs["genlab"]},
        },
        "largest_difference_to_straightforward": max(
            (ours - theirs).abs().max().item()
            for ours, theirs in zip(logits["genlab"], logits["straightforward"], strict=True)
        ),
        "largest_logit": max(part.abs().max().item() for part in logits["straightforward"]),
    }
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
