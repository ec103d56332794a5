"""Recomputes the golden files of sampling acceleration: caches, forecasts, merged tokens and guidance for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.convert import sit
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import GUIDED_CHANNELS
from genlab.core.contracts import Network
from genlab.networks.dit import DiT
from genlab.nn import token_merging
from genlab.nn.cache_policies import AccumulatedGate, Between, Every, FirstBlockGate, Forecast
from genlab.nn.embed import time_features
from genlab.nn.feature_cache import cache_branches, cache_stack
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.edm import Edm
from genlab.processes.edm_sampling import EdmSampling
from samplers import ddpm, edm
from samplers.grids import karras

TIGHT, TRAJECTORY = 1e-5, 1e-4


@torch.no_grad()
def fora_dit(golden: Golden) -> Iterator[Check]:
    """The states of a guided ancestral sampler whose branches are computed every few steps."""
    config, z = golden.config, golden["in.z"]
    network = sit.load(DiT(**sit.from_constructor(config)), golden.group("param")).eval()
    steps, label = config["num_steps"], golden["in.y"][: len(z)]
    diffusion = Diffusion(variance="learned_range")
    chain = diffusion.chain(str(steps))
    settings = DiffusionSampling(
        guidance=config["cfg_scale"],
        guidance_channels=GUIDED_CHANNELS,
        clip_denoised=config.get("clip_denoised", False),
    )
    for name in golden.group("out"):
        interval = int(name.removeprefix("interval")) if name != "off" else 1
        draws, states = iter(golden["in.noise"][:, : len(z)]), list[Tensor]()
        with cache_branches(network, Every(steps, interval)):
            ddpm.ancestral(
                diffusion.stepwise(network, label, settings, chain),
                z,
                chain,
                lambda: next(draws),  # noqa: B023 (called at once)
                lambda progress: states.append(progress.result),  # noqa: B023
            )
        yield Check(f"out.{name}", torch.stack(states), TRAJECTORY)


def token_merging_case(golden: Golden) -> Iterator[Check]:
    """Merged and unmerged tokens."""
    for index, case in enumerate(golden.config["cases"]):
        grid, region = (case["h"], case["w"]), (case["sy"], case["sx"])
        merging = token_merging.match(golden[f"in.{index}.metric"], grid, region, case["r"])
        merged = merging.merge(golden[f"in.{index}.values"])
        kept, means = merged.split([merging.kept.shape[1], len(merging.destinations)], dim=1)
        order = _reference_order(merging.destinations, case["h"] * case["w"])
        yield Check(f"out.{index}.merged", torch.cat([kept, means[:, order]], dim=1), TIGHT)
        yield Check(f"out.{index}.unmerged", merging.unmerge(merged), TIGHT)


def taylorseer(golden: Golden) -> Iterator[Check]:
    """Features computed or forecast."""
    for name in golden.config["cases"]:
        interval, before, order, after = (part[1:] for part in name.split("_"))
        schedule = Between(int(interval), int(before), None if after == "None" else int(after))
        forecast, results, computed = Forecast(int(order)), list[Tensor](), list[bool]()
        for step, feature in enumerate(golden["in.features"]):
            computed.append(schedule.is_full(step))
            if computed[-1]:
                forecast.update(step, feature)
            results.append(feature if computed[-1] else forecast.at(step))
        yield Check(f"out.{name}", torch.stack(results), TIGHT)
        yield Check(f"out.{name}.computed", torch.tensor(computed), 0)


@torch.no_grad()
def first_block_cache(golden: Golden) -> Iterator[Check]:
    """A PixArt network of diffusers with our cache around its blocks."""
    from diffusers import PixArtTransformer2DModel

    config = dict(golden.config)
    thresholds = config.pop("thresholds")
    network: Any = PixArtTransformer2DModel(**config)
    network.eval()
    network.load_state_dict(golden.group("param"), strict=False)  # its table of positions is computed
    sizes = {"resolution": None, "aspect_ratio": None}

    def outputs() -> Tensor:
        results = []
        for x, t in zip(golden["in.x"], golden["in.t"]):
            options: dict[str, Any] = {"timestep": t.expand(len(x)), "added_cond_kwargs": sizes}
            results.append(network(x, encoder_hidden_states=golden["in.caption"], **options).sample)
        return torch.stack(results)

    yield Check("out.full", outputs(), TIGHT)
    for threshold in thresholds:
        with cache_stack(network.transformer_blocks, FirstBlockGate(threshold)) as usage:
            yield Check(f"out.thr{threshold}", outputs(), TIGHT)
        yield Check(f"out.thr{threshold}.computed", torch.tensor(usage.full), 0)


def teacache(golden: Golden) -> Iterator[Check]:
    """Decisions, and what has added up when they were taken."""
    for name, case in golden.config["cases"].items():
        signals = golden["in.modulated"]
        gate = AccumulatedGate(case["threshold"], len(signals), case["coefficients"])
        computed, accumulated = list[bool](), list[float]()
        for signal in signals:
            computed.append(gate.is_full(signal))
            accumulated.append(gate.accumulated)
        yield Check(f"out.{name}.computed", torch.tensor(computed), 0)
        yield Check(f"out.{name}.accumulated", torch.tensor(accumulated, dtype=torch.float64), TIGHT)


@torch.no_grad()
def guidance_interval_edm(golden: Golden) -> Iterator[Check]:
    """Samples guided by a second, unconditional network in some steps, and how often both are called."""
    config, state = golden.config, golden.group("param")
    sizes = (config["channels"], config["hidden"], config["classes"])
    strong, weak = _TinyNet(*sizes), _TinyNet(*sizes, always_null=True)
    for network, prefix in ((strong, "cond.f."), (weak, "guide.f.")):
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    for name, case in config["cases"].items():
        levels = karras(80, 0.002, case["num_steps"])
        first, last = case.get("guidance_interval", (0, case["num_steps"]))
        low, high = (levels[min(index, case["num_steps"])].item() for index in (last, first))
        settings = EdmSampling(guidance=case["G"], guidance_interval=(low, high))
        strong.calls = weak.calls = 0
        denoise = Edm().denoiser(strong, golden["in.labels"], settings, weak)
        x = edm.heun(denoise, golden["in.z"].double() * levels[0], levels)
        assert (strong.calls, weak.calls) == (case["cond_calls"], case["guide_calls"]), "other numbers of calls"
        yield Check(f"out.{name}", x.float(), TIGHT)


CASES: dict[str, Case] = {
    "fora_dit": fora_dit,
    "token_merging": token_merging_case,
    "taylorseer": taylorseer,
    "first_block_cache": first_block_cache,
    "teacache_own_text": teacache,
    "guidance_interval_edm": guidance_interval_edm,
}


def _reference_order(destinations: Tensor, tokens: int) -> Tensor:
    """The order in which the reference lists destinations [d]: that of an unstable sort."""
    marks = torch.zeros(1, tokens, 1, dtype=torch.int64)
    marks[:, destinations] = -1
    return torch.searchsorted(destinations, marks.argsort(dim=1)[0, : len(destinations), 0])


class _TinyNet(Network):
    """The network of the file: two hidden convolutions, told the noise level and the class."""

    def __init__(self, channels: int, hidden: int, classes: int, always_null: bool = False):
        super().__init__()
        self.num_classes, self.always_null, self.calls = classes, always_null, 0
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, channels, 3, padding=1)
        self.time, self.step = nn.Linear(16, hidden), nn.Linear(16, hidden)
        self.label = nn.Embedding(classes + 1, hidden)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        label = torch.full_like(label, self.null_label) if self.always_null else label
        told = self.time(time_features(t, 16)) + self.step(time_features(torch.zeros_like(t), 16)) + self.label(label)
        h = F.silu(self.conv_in(x) + told[:, :, None, None])
        return self.conv_out(F.silu(self.mid(h)))
