"""Recomputes the golden files of xAR: tables, training forwards and losses, other entities, and samples."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from genlab.convert import xar
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.xar import XAR
from genlab.networks.xar_blocks import Turns
from genlab.networks.xar_entities import Entities, entities
from genlab.nn.block_causal import visible
from genlab.nn.grid_rope import GridRope
from genlab.processes.next_x import NextX
from genlab.processes.next_x_sampling import Generation, NextXSampling, ticks
from samplers.grids import uniform

TOLERANCE = 1e-5
_SAMPLERS = {"sde": "euler_maruyama", "ode": "euler"}


def tables(golden: Golden) -> Iterator[Check]:
    """Token order, who sees whom, rotary angles, and the times that the network is told."""
    config = golden.config
    order = entities((config["grid"], config["grid"]), "cell", config["cell"])
    yield Check("out.cell_order", _raster(order), 0)
    yield Check("out.mask_allowed", visible(order.sizes), 0)
    for name in golden.group("out"):
        kind, _, rest = name.partition("_")
        if kind == "rope":
            what, width = rest.split("_hd")
            yield Check(f"out.{name}", _rope(what, int(width), order.places), TOLERANCE)
        elif kind in _SAMPLERS:
            steps = int(rest.removeprefix("time_int_"))
            grid = uniform(0, 0.96, steps - 1) if kind == "sde" else uniform(0, 1, steps)[:-1]
            yield Check(f"out.{name}", ticks(1 - grid).long(), 0)


def forward_loss(golden: Golden) -> Iterator[Check]:
    """The training forward, its intermediates and its loss."""
    network = _network(golden).train()
    label = torch.where(golden["in.label_drop"], network.null_label, golden["in.labels"])  # [B]
    x = network.entities.arrange(golden["in.latent"])  # [B,L,C]
    noise, t = golden["in.noise"].flatten(1, 2), golden["in.t"].T  # [B,L,C], [B,G]
    noisy = torch.lerp(x, noise, t[:, network.entities.owner, None])
    seen: dict[str, Tensor] = {}
    for name in ("time_embed", "encoder_norm"):
        module = getattr(network, name)
        module.register_forward_hook(lambda _module, _args, out, name=name: seen.update({name: out}))
    velocity = network(noisy, ticks(t), label)
    yield Check("mid.time_int", ticks(t).T.long(), 0)
    yield Check("mid.noisy_tokens", noisy, TOLERANCE)
    yield Check("mid.time_embed", seen["time_embed"].unflatten(0, t.shape).transpose(0, 1), TOLERANCE)
    yield Check("mid.encoder_out", seen["encoder_norm"], TOLERANCE)
    yield Check("out.velocity", velocity, TOLERANCE)
    yield Check("out.loss", NextX().loss_at(network, x, noise, t, label).mean(), TOLERANCE)


@torch.no_grad()
def sample(golden: Golden) -> Iterator[Check]:
    """A sample with cache and guidance, whose rows are conditional, then unconditional ones, where both are needed."""
    network, config = _network(golden), golden.config
    calls: list[tuple[int, Tensor, Tensor]] = []
    step = network.step

    def recorded(x: Tensor, entity: int, m: Tensor, cache: Any) -> Tensor:
        calls.append((entity, x, step(x, entity, m, cache)))
        return calls[-1][2]

    network.step = recorded  # type: ignore[method-assign]
    latent = _sampled(golden, network, config, "in")
    for entity in range(len(network.entities)):
        own = [(x, v) for called, x, v in calls if called == entity]
        for number, (x, v) in enumerate(own):
            name = f"mid.cell{entity}.step{number}"
            if f"{name}.v" in golden.tensors and golden[f"{name}.v"].shape == v.shape:
                current = golden[f"{name}.x"].shape == x.shape  # else the file's call has another cell before it
                yield from [Check(f"{name}.x", x, TOLERANCE)] if current else []
                yield Check(f"{name}.v", v, TOLERANCE)
    yield from _finals(golden, network, latent, "")
    yield Check("out.latent", latent, TOLERANCE)


@torch.no_grad()
def sample_variants(golden: Golden) -> Iterator[Check]:
    """Samples of several settings."""
    network = _network(golden)
    for name, settings in golden.config["runs"].items():
        latent = _sampled(golden, network, settings, f"in.{name}")
        yield from _finals(golden, network, latent, f"{name}.")
        yield Check(f"out.{name}.latent", latent, TOLERANCE)


@torch.no_grad()
def derived_kinds(golden: Golden) -> Iterator[Check]:
    """Other entities over the same weights."""
    config, latent, label = golden.config, golden["in.latent"], golden["in.labels"]
    for kind in config["kinds"]:
        name = kind["name"]
        size = kind["k"] if kind["kind"] in ("cell", "subsample") else None
        network = _network(golden, grid=tuple(latent.shape[2:]), entity=kind["kind"], entity_size=size)
        x, noise, t = network.entities.arrange(latent), golden[f"in.{name}.noise"], golden[f"in.{name}.t"]
        yield Check(f"out.{name}.order", _raster(network.entities), 0)
        noisy = torch.lerp(x, noise, t[:, network.entities.owner, None])
        yield Check(f"out.{name}.velocity", network(noisy, ticks(t), label), TOLERANCE)
        yield Check(f"out.{name}.loss", NextX().loss_at(network, x, noise, t, label).mean(), TOLERANCE)
        if f"out.{name}.sample" in golden.tensors:
            yield Check(f"out.{name}.sample", _sampled(golden, network, config["sample"], f"in.{name}"), TOLERANCE)


CASES: dict[str, Case] = {
    "tables": tables,
    "forward_loss": forward_loss,
    "sample": sample,
    "sample_variants": sample_variants,
    "derived_kinds": derived_kinds,
}


def _network(golden: Golden, **changes: Any) -> XAR:
    state, arguments = golden.group("param"), xar.from_constructor(golden.config)
    shapes = xar.xar_arguments(state, arguments["heads"])
    arguments |= {key: shapes[key] for key in ("grid", "channels", "entity_size", "mlp_ratio", "num_classes")}
    return xar.load(XAR(**{**arguments, "dropout": 0.0, **changes}), state).eval()


def _sampled(golden: Golden, network: XAR, config: dict[str, Any], prefix: str) -> Tensor:
    """A sample [B,C,H,W] under the noise in the file."""
    settings = NextXSampling(
        sampler=_SAMPLERS[config["sampler"]],
        steps=config["num_steps"],
        guidance=float(config["cfg"]),
    )
    start, between = golden[f"{prefix}.init_noise"], golden.tensors.get(f"{prefix}.step_noise")

    def stream(entity: int) -> Any:  # in place of a SampleRng
        draws = iter([start[entity], *([] if between is None else between[entity].float())])
        return SimpleNamespace(normal=lambda *shape: next(draws))

    names = ("sample_labels", "labels")
    label = next(golden[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in golden.tensors)
    return Generation(network, label, start.shape[-1], settings).run(stream)


def _finals(golden: Golden, network: XAR, latent: Tensor, run: str) -> Iterator[Check]:
    """The finished cells in the file."""
    tokens = network.entities.arrange(latent)  # [B,L,C]
    for entity in range(len(network.entities)):
        name = f"mid.{run}cell{entity}.final"
        if name in golden.tensors:
            yield Check(name, tokens[:, network.entities.span(entity)], TOLERANCE)


def _raster(order: Entities) -> Tensor:
    """int64 [L], the place of each position in the grid, row by row."""
    row, column = order.places.long().unbind(1)
    return row * order.grid[1] + column


def _rope(what: str, width: int, places: Tensor) -> Tensor:
    """A rotary table as the official code stores it: each frequency twice, or the frequencies themselves."""
    if what == "freqs":
        return GridRope(width).frequencies(torch.tensor([[16, 16]]))[0][0]
    return Turns(width, places).table[..., ("cos", "sin").index(what)].repeat_interleave(2, dim=1)
