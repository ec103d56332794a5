"""Recomputes the golden files of DiffFit: scaled and merged networks, losses, training, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from genlab.convert import sit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, with_null
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import guided_rows
from genlab.finetuning import adapters, difffit
from genlab.finetuning.difffit import DiffFitSettings
from genlab.finetuning.transfer import scaled_positions
from genlab.networks.dit import PRESETS, DiT
from genlab.processes.diffusion import Diffusion
from genlab.processes.schedules import betas

_MERGED, _EXACT = 2e-6, 1e-7


def tuned(golden: Golden) -> Iterator[Check]:
    """The scaled network, its merged form, losses, gradients and a few training steps."""
    settings = _settings(golden.config["gamma"])
    network = DiT(**sit.from_constructor(golden.config["dit"]))
    adapters.apply(network, settings)
    sit.load(network, golden.group("param"))
    assert set(adapters.trainable(network)) == set(golden.config["trainable"]), "another set is trained"
    x, t, label = golden["in.x"], golden["in.t"], golden["in.y"]
    forward = network(x, t, label)
    yield Check("out.forward", forward, FORWARD)
    first = torch.arange(len(x) // 2) % network.num_classes  # the guided forward has labels of its own
    labels = with_null(network, first)
    for name in golden.group("out"):
        if name.startswith("forward_cfg"):
            scale = float(name.removeprefix("forward_cfg"))
            yield Check(f"out.{name}", guided_rows(network, x, t, labels, scale), FORWARD)
    merged = adapters.merge(deepcopy(network))
    yield Check("out.forward_merged", merged(x, t, label), max(FORWARD, _MERGED))
    yield from (Check(f"mid.merged.{name}", value, FORWARD) for name, value in merged.state_dict().items())
    plain = deepcopy(network)
    for site in difffit.sites(plain, settings):
        torch.nn.init.ones_(getattr(site.owner, site.name))
    yield Check("out.forward_gamma_one", plain(x, t, label), FORWARD)
    learned = golden.config["dit"].get("learn_sigma", True)
    process = Diffusion(variance="learned_range" if learned else "fixed_large")
    yield from _losses(golden, network, process)
    yield from _training(golden, network, process)


def trainable_sets(golden: Golden) -> Iterator[Check]:
    """How many parameters and tensors are trained, in all presets and placements."""
    config = golden.config
    rows = list[list[int]]()
    for row in config["rows"]:
        preset, classes, variant = row.split("|")
        options = config["variants"][variant]
        network = _sized(preset, int(classes.removeprefix("K=")))
        first = options["first_blocks"]
        blocks = None if first is None else tuple(range(min(first, len(network.blocks))))
        with torch.device("meta"):
            adapters.apply(network, DiffFitSettings(placement=tuple(options["placement"]), blocks=blocks))
        counts = adapters.trainable(network)
        kinds = {
            "trainable": sum(counts.values()),
            "total": sum(p.numel() for p in network.parameters()) + network.pos_embed.numel(),
            "bias": sum(count for name, count in counts.items() if name.endswith(".bias")),
            "gamma": sum(count for name, count in counts.items() if "gamma" in name.rpartition(".")[2]),
            "y_embed": sum(count for name, count in counts.items() if name.startswith("y_embed")),
            "tensors": len(counts),
        }
        rows.append([kinds[column] for column in config["columns"]])
        if row == "DiT-XL/2|K=1000|block_all" and "xl2_block_all" in config:
            shapes = {name: list(network.get_parameter(name).shape) for name in counts}
            assert shapes == dict(config["xl2_block_all"]), "another set is trained"
    yield Check("out.counts", torch.tensor(rows), 0)


def pos_embed_transfer(golden: Golden) -> Iterator[Check]:
    """Tables of positions, plain and scaled, and the weights of a bound that a public port multiplies its loss by."""
    for name in golden.group("out"):
        kind, *numbers = name.removesuffix("_is_finite").replace("_to_", "_").split("_")
        if kind in ("base", "plain", "scaled"):
            width, old, new = map(int, (*numbers, numbers[-1])[:3])
            yield Check(f"out.{name}", scaled_positions(width, (old, old), (new, new)), _EXACT)
    beta = betas("scaled_linear", 1000)
    kept = torch.cumprod(1 - beta, 0)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    weights = beta.square() / (2 * beta * (1 - before) / (1 - kept) * (1 - beta) * (1 - kept))
    for name in golden.group("out"):
        if name.startswith("sd_lvlb_weights_"):
            steps = [int(step) for step in name.split("_")[3:]]
            yield Check(f"out.{name}", weights[steps], TRAJECTORY)
        elif name == "sd_lvlb_weight_0_is_finite":
            yield Check(f"out.{name}", weights[0].isfinite().long(), 0)


CASES: dict[str, Case] = {
    "block_gamma": tuned,
    "attn_block_gamma_half": tuned,
    "trainable_sets": trainable_sets,
    "pos_embed_transfer": pos_embed_transfer,
}


def _settings(gamma: dict[str, list[str]]) -> DiffFitSettings:
    return DiffFitSettings.model_validate({"placement": gamma["placement"], "blocks": gamma.get("blocks")})


def _sized(preset: str, classes: int) -> DiT:
    with torch.device("meta"):
        return DiT(grid=(32, 32), channels=4, num_classes=classes, learn_sigma=True, **PRESETS[preset])


def _losses(golden: Golden, network: DiT, process: Diffusion) -> Iterator[Check]:
    data, noise, step, label = golden["in.x0"], golden["in.noise"], golden["in.t_loss"], golden["in.y"]
    losses = process.loss_at(network, data, noise, step, label)
    yield Check("out.loss_terms", losses["loss"], TRAJECTORY)
    yield Check("out.mse", losses.get("mse", losses["loss"]), TRAJECTORY)
    if "bound" in losses:
        yield Check("out.vb", losses["bound"], TRAJECTORY)
    offset = noise + golden.config["offset_strength"] * golden["in.offset"]
    yield Check("out.loss_offset_noise", process.loss_at(network, data, offset, step, label)["loss"], TRAJECTORY)
    yield from gradients(golden, "out.grad.", network.get_parameter, losses["loss"])


def _training(golden: Golden, network: DiT, process: Diffusion) -> Iterator[Check]:
    config = golden.config
    chosen = {name: p for name, p in network.named_parameters() if p.requires_grad}
    average: dict[str, Tensor] = {name: p.detach().clone() for name, p in chosen.items()}
    optimizer = torch.optim.AdamW(chosen.values(), lr=config["lr"], eps=config["adam_eps"], weight_decay=0.0)
    losses = list[Tensor]()
    for step, drop in enumerate(golden["in.train_drop"]):
        label = torch.where(drop.bool(), network.null_label, golden["in.train_y"][step])
        noise, t = golden["in.train_noise"][step], golden["in.train_t"][step]
        loss = process.loss_at(network, golden["in.x0"], noise, t, label)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in chosen.items():
            average[name].lerp_(value.detach(), 1 - config["ema"])
        losses.append(loss.detach())
    yield Check("out.train_losses", torch.stack(losses), TRAJECTORY)
    for prefix, state in (("out.trained", chosen), ("out.ema", average)):
        yield from (Check(f"{prefix}.{name}", value, TRAJECTORY) for name, value in state.items())
