"""Sampling time of VAR and M-VAR: genlab against the straightforward form of `specs/var.md` and `mvar.md`, in one run.

    python benchmarks/next_scale.py --network var --preset VAR-d16 --batch 1
    python benchmarks/next_scale.py --network mvar --preset M-VAR-d16 --batch 1

"straightforward" computes the reference's sampling line by line with the same weights: the modulation again at every
scale and for every row, keys and values concatenated, for M-VAR the whole prefix through every Mamba layer again, and
nucleus sampling over the whole vocabulary. Its Mamba layers scan position by position, as section 2.1 of `mvar.md`
writes them; "chunked" is the same with genlab's scan, so that what re-running costs can be told apart. "genlab" is
what `genlab sample` does, "unpacked" the same without weights in oneDNN's order. All draw from the same streams: that
the codes agree is part of the report. Images are not decoded, which is the same for all. Times are the best of some
rounds, on the CPU seconds of the process, which other work on the machine disturbs less than it does the clock; on a
GPU they are seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.contracts import LatentSpec
from genlab.networks.mvar import MVARConfig
from genlab.networks.next_scale import NextScaleNetwork
from genlab.networks.var import VARConfig
from genlab.nn.packed import packed
from genlab.nn.scales import lengths_of
from genlab.processes.next_scale import NextScale
from genlab.processes.next_scale_sampling import NextScaleSampling
from genlab.tokenization.multiscale import VAR_256
from genlab.tokenization.quantizers.multiscale import MultiscaleQuantization
from samplers.categorical import exponential
from samplers.noise import SampleRng, spawn


class Straightforward:
    """The network as the specifications write its sampling; made anew for every batch."""

    def __init__(self, network: NextScaleNetwork, label: Tensor, chunked: bool = False):
        self.network, self.label, self.chunked = network, label, chunked
        blocks = range(len(network.blocks))
        self.keys: list[Tensor | None] = [None for _ in blocks]
        self.values: list[Tensor | None] = [None for _ in blocks]
        self.prefix: list[Tensor | None] = [None for _ in blocks]
        self.start = 0

    def __call__(self, k: int, inputs: Tensor | None) -> Tensor:
        """The logits of scale k."""
        network: Any = self.network
        c = network.class_emb(self.label)
        x = c.unsqueeze(1) + network.pos_start if inputs is None else network.word_embed(inputs.repeat(2, 1, 1))
        x = x + network.places(network.grids)[:, self.start : self.start + lengths_of(network.grids)[k]]
        self.start += x.shape[1]
        for number, block in enumerate(network.blocks):
            x = self._block(x, c, block, number)
        scale, shift = network.head_nm.ada_lin(c).unflatten(1, (2, 1, -1)).unbind(1)
        return network.head(_norm(x) * (1 + scale) + shift)

    def _block(self, x: Tensor, c: Tensor, block: Any, number: int) -> Tensor:
        layers = block.layers
        gates, scales, shifts = block.ada_lin(c).unflatten(1, (3, layers, 1, -1)).unbind(1)
        x = x + self._attention(_norm(x) * (1 + scales[:, 0]) + shifts[:, 0], block.attn, number) * gates[:, 0]
        if layers == 3:
            before = self.prefix[number]
            self.prefix[number] = whole = x if before is None else torch.cat([before, x], dim=1)
            here = _norm(whole) * (1 + scales[:, 1]) + shifts[:, 1]
            y = block.mamba(here) if self.chunked else _sequential(block.mamba, here)
            x = x + y[:, -x.shape[1] :] * gates[:, 1]
        return x + block.ffn(_norm(x) * (1 + scales[:, -1]) + shifts[:, -1]) * gates[:, -1]

    def _attention(self, x: Tensor, layer: Any, number: int) -> Tensor:
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
        qkv = F.linear(x, layer.mat_qkv.weight, bias).unflatten(2, (3, layer.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if layer.scale_mul_1H11 is not None:
            q = F.normalize(q, dim=-1) * layer.scale_mul_1H11.clamp(max=math.log(100)).exp()
            k = F.normalize(k, dim=-1)
        if not self._within_scales:
            before, values = self.keys[number], self.values[number]
            k = k if before is None else torch.cat([before, k], dim=2)
            v = v if values is None else torch.cat([values, v], dim=2)
            self.keys[number], self.values[number] = k, v
        y = F.scaled_dot_product_attention(q, k, v, scale=layer.scale)
        return layer.proj(y.transpose(1, 2).flatten(2))

    @property
    def _within_scales(self) -> bool:
        return getattr(self.network.blocks[0], "layers", 2) == 3


def _sequential(layer: Any, u: Tensor) -> Tensor:
    """A Mamba-2 layer, position by position."""
    gate, convolved, step = layer.in_proj(u).split(layer.sizes, dim=-1)
    convolved = F.silu(layer.conv1d(F.pad(convolved, (0, 0, 3, 0)).mT).mT)
    values, keys, queries = convolved.split([layer.sizes[0], layer.state_size, layer.state_size], dim=-1)
    values = values.unflatten(2, (layer.heads, -1))  # [B,L,M,P]
    step = F.softplus(step + layer.dt_bias)  # [B,L,M]
    kept = (step * -layer.A_log.exp()).exp()
    state = values.new_zeros(*values[:, 0].shape, layer.state_size)  # [B,M,P,N]
    outputs = []
    for t in range(u.shape[1]):
        written = (step[:, t, :, None] * values[:, t])[..., None] * keys[:, t, None, None]
        state = kept[:, t, :, None, None] * state + written
        outputs.append((state @ queries[:, t, None, :, None]).squeeze(-1) + layer.D[:, None] * values[:, t])
    return layer.out_proj(layer.norm(torch.stack(outputs, dim=1).flatten(2) * F.silu(gate)))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def straightforward(
    network: NextScaleNetwork,
    tokenizer: Any,
    label: Tensor,
    settings: NextScaleSampling,
    rng: SampleRng,
    chunked: bool = False,
) -> Tensor:
    """Codes [B,L]."""
    model = Straightforward(network, torch.cat([label, torch.full_like(label, network.null_label)]), chunked)
    state, inputs, parts = None, None, []
    for k in range(len(network.grids)):
        conditional, unconditional = model(k, inputs).chunk(2)
        t = (settings.guidance - 1) * k / (len(network.grids) - 1)
        logits = (1 + t) * conditional - t * unconditional
        if settings.top_k:
            logits = logits.masked_fill(logits < logits.topk(settings.top_k).values[..., -1:], -torch.inf)
        if settings.top_p:
            ranked, order = logits.sort(dim=-1)
            unlikely = ranked.softmax(-1).cumsum(-1) <= 1 - settings.top_p
            unlikely[..., -1] = False
            logits = logits.masked_fill(unlikely.scatter(-1, order, unlikely), -torch.inf)
        codes = (logits.softmax(-1) / exponential(rng, *logits.shape[1:])).argmax(-1)
        state, inputs = tokenizer.step(k, state, codes)
        parts.append(codes)
    return torch.cat(parts, dim=1)


def build(options: argparse.Namespace) -> tuple[NextScaleNetwork, Any]:
    """A network of the preset's size with random weights everywhere, so that no branch is silent; and a quantiser."""
    torch.manual_seed(0)
    side = options.scales[-1]
    tokenizer: Any = MultiscaleQuantization(vocab=4096).build(32, options.scales).eval().requires_grad_(False)
    torch.nn.init.normal_(tokenizer.embedding.weight)
    tokenizer.spec = LatentSpec("multiscale", 32, (side, side), 16 * side, vocab=4096, scales=tuple(options.scales))
    sizes = {"preset": options.preset} | ({"depth": options.depth} if options.depth else {})
    config = {"var": VARConfig, "mvar": MVARConfig}[options.network](**sizes)
    network = config.build(tokenizer.spec, 1000).eval().requires_grad_(False)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    for name, parameter in network.named_parameters():
        if "ada_lin" in name and name.endswith("weight"):
            parameter.normal_(std=0.02)
    return network.to(options.device), tokenizer.to(options.device)


def timed(contenders: dict[str, Callable[[], Tensor]], options: argparse.Namespace) -> tuple[dict[str, float], Any]:
    """The best of some rounds through all contenders, in seconds, and their codes."""
    seconds, codes = dict.fromkeys(contenders, math.inf), {}
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    for _ in range(options.repeats):
        for name, run in contenders.items():
            start = clock()
            codes[name] = run().cpu()  # waits for the device
            seconds[name] = min(seconds[name], clock() - start)
    return seconds, codes


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["var", "mvar"], default="var")
    parser.add_argument("--preset", default="VAR-d16")
    parser.add_argument("--depth", type=int, help="other than the preset's")
    parser.add_argument("--scales", type=int, nargs="+", default=VAR_256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, tokenizer = build(options)
    process = NextScale(tokenizer=tokenizer)
    settings = NextScaleSampling(guidance=2.5, top_k=900, top_p=0.96)
    label = torch.arange(options.batch, device=options.device)

    def ours(pack: bool) -> Tensor:
        with packed(network) if pack else nullcontext():
            return process.sample(network, label, tokenizer.spec, streams(), settings)

    def streams() -> SampleRng:
        return spawn(0, range(options.batch), options.device)

    contenders: dict[str, Callable[[], Tensor]] = {
        "genlab": lambda: ours(True),
        "unpacked": lambda: ours(False),
        "straightforward": lambda: straightforward(network, tokenizer, label, settings, streams()),
    }
    if options.network == "mvar":
        contenders["chunked"] = lambda: straightforward(network, tokenizer, label, settings, streams(), chunked=True)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
        seconds, codes = timed(contenders, options)
    report: dict[str, Any] = {
        **{key: value for key, value in vars(options).items() if key != "out"},
        "torch": torch.__version__,
        "hardware": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "seconds": seconds,
        "images_per_second": {name: options.batch / value for name, value in seconds.items()},
        "ratios": {name: seconds["straightforward"] / value for name, value in seconds.items()},
        "codes_that_agree": {
            name: (own == codes["straightforward"]).float().mean().item() for name, own in codes.items()
        },
    }
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
