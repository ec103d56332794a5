"""Recomputes the golden files of one-step generators trained from scratch: mean flow, improved mean flow, shortcut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genlab.convert import golden_consistency, golden_shortcut, sit
from genlab.convert import improved_mean_flow as convert_imf
from genlab.convert import mean_flow as convert
from genlab.convert.golden_parts import FORWARD, gradients
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.imf_dit import IMFDiT
from genlab.networks.interval_dit import IntervalDiT
from genlab.processes.guidance import combine
from genlab.processes.improved_mean_flow import ImprovedMeanFlow
from genlab.processes.mean_flow import MeanFlow, adaptive, derivative
from genlab.processes.mean_flow_sampling import walk

LOSS, DERIVATIVE = 1e-4, 2e-4


def meanflow(golden: Golden) -> Iterator[Check]:
    """The network, losses with their targets and gradients, and samples."""
    network = _interval_dit(golden)
    t, r, label = golden["in.fwd_t"], golden["in.fwd_r"], golden["in.fwd_y"]
    with torch.no_grad():
        out = network(golden["in.x"], t, label, t - r)
    yield Check("out.forward", out, FORWARD)
    yield Check("out.forward_jax", out, FORWARD)
    for name, case in golden.config["cases"].items():
        yield from _meanflow_losses(golden, network, name, {**golden.config["defaults"], **case})
    yield from _meanflow_samples(golden, network)


def _meanflow_losses(golden: Golden, network: IntervalDiT, name: str, case: dict[str, Any]) -> Iterator[Check]:
    x, e = golden["in.x"], golden["in.e"]
    process = MeanFlow(
        omega=case.get("omega", 1.0) if case["guidance_eq"] else 1.0,
        kappa=case.get("kappa", 0.0) if case["guidance_eq"] else 0.0,
        guidance_interval=(case["t_start"], case["t_end"]),
        norm_power=case["norm_p"],
        norm_eps=case["norm_eps"],
    )
    t, r = _times(golden, case)
    label = _dropped(golden, case)
    yield Check(f"mid.{name}.t", t, FORWARD)
    yield Check(f"mid.{name}.r", r, FORWARD)
    yield Check(f"mid.{name}.y_input", label, 0)
    losses = process.losses_at(network, x, e, t, r, label)
    yield Check(f"out.{name}.loss", losses["loss"].mean(), LOSS)
    yield Check(f"out.{name}.v_loss", losses["velocity_mse"] * x[0].numel(), LOSS)
    yield from _gradients(golden, network, losses["loss"], name)
    with torch.no_grad():
        (z, v), h = process.state(x, e, t), t - r
        u = network(z, t, label, h)
        guided = process.guided_velocity(network, z, v, u, t, r, label)
        change = derivative(network, z, guided, t, h, label, {})
    yield Check(f"mid.{name}.u", u, FORWARD)
    yield Check(f"mid.{name}.v_guided", guided, FORWARD)
    yield Check(f"mid.{name}.du_dt", change, DERIVATIVE)
    yield Check(f"mid.{name}.u_target", guided - h.clamp(0, 1)[:, None, None, None] * change, DERIVATIVE)


@torch.no_grad()
def _meanflow_samples(golden: Golden, network: IntervalDiT) -> Iterator[Check]:
    """`sample_STEPS`, and `sample_cfgSCALE_STEPS` with guidance from outside, which only the reference offers."""
    z, label = golden["in.sample_z"], golden["in.sample_y"]
    for name in golden.group("out"):
        if not name.startswith("sample_"):
            continue
        *cfg, steps = name.removeprefix("sample_").split("_")
        scale = float(cfg[0].removeprefix("cfg")) if cfg else 1.0
        h = torch.full((len(z),), 1 / int(steps))

        def average(z: Tensor, t: float, h: Tensor = h, scale: float = scale) -> Tensor:
            with_label, without = (
                network(z, torch.full_like(h, t), rows, h)
                for rows in (label, torch.full_like(label, network.null_label))
            )
            return combine(with_label, without, scale, None)

        yield Check(f"out.{name}", walk(average, z, 1.0, 0.0, int(steps)), LOSS)


def meanflow_port(golden: Golden) -> Iterator[Check]:
    """Losses of the PyTorch port, which weighs the square of the summed squares, and their gradients."""
    network = _interval_dit(golden)
    x, e = golden["in.x"], golden["in.e"]
    pair = torch.sigmoid(golden["in.normal"] - 0.4)  # [B,2]
    drop = golden["in.drop_uniform"] < golden.config["label_dropout_prob"]
    label = torch.where(drop, network.null_label, golden["in.y"])
    for name, case in golden.config["cases"].items():
        process = MeanFlow(
            path="gvp" if case.get("path_type") == "cosine" else "linear",
            omega=case["cfg_omega"],
            kappa=case["cfg_kappa"],
            guidance_interval=(case.get("cfg_min_t", 0.0), case["cfg_max_t"]),
        )
        t = pair.amax(1)
        r = torch.where(golden["in.equal_uniform"] < 1 - case["ratio_r_not_equal_t"], t, pair.amin(1))
        z, v = process.state(x, e, t)
        u = network(z, t, label, t - r)
        squares = (u - process.target(network, z, v, u.detach(), t, r, label)).square().flatten(1)  # [B,CHW]
        loss = squares.sum(1)
        if case["weighting"] == "adaptive":
            loss = adaptive(loss.square(), case.get("adaptive_p", 1.0), 1e-3)
        yield Check(f"out.{name}.loss", loss, LOSS)
        yield Check(f"out.{name}.mse", squares.mean(), LOSS)
        yield from _gradients(golden, network, loss, name)


def imf(golden: Golden) -> Iterator[Check]:
    """Both heads, losses with their parts and gradients, and samples."""
    network = _imf_dit(golden)
    label, h, omega, start, end = (golden[f"in.fwd_{name}"] for name in ("y", "h", "omega", "tmin", "tmax"))
    with torch.no_grad():
        both = network(golden["in.x"], h, label, h, omega, torch.stack([start, end], dim=1), head="both")
    average, velocity = both.chunk(2, dim=1)
    yield Check("out.forward_u", average, FORWARD)
    yield Check("out.forward_v", velocity, FORWARD)
    for name, case in golden.config["cases"].items():
        yield from _imf_losses(golden, network, name, {**golden.config["defaults"], **case})
    for name in golden.group("out"):
        if name.startswith("sample_"):
            steps, *asked = name.removeprefix("sample_").replace("omega", "").split("_")
            yield Check(f"out.{name}", _imf_sample(golden, network, int(steps), *map(float, asked)), LOSS)


def _imf_losses(golden: Golden, network: IMFDiT, name: str, case: dict[str, Any]) -> Iterator[Check]:
    x, e = golden["in.x"], golden["in.e"]
    process = ImprovedMeanFlow(
        guidance_max=case["omega_max"],
        guidance_power=case["cfg_beta"],
        norm_power=case["norm_p"],
        norm_eps=case["norm_eps"],
    )
    t, r = _times(golden, case)
    label = _dropped(golden, case)
    u = torch.stack([golden[f"in.uniform_{key}"] for key in ("omega", "tmin", "tmax")], dim=1)  # [B,3]
    wish = process.wish(u, torch.arange(len(t)) < int(len(t) * case["data_proportion"]))
    yield Check(f"mid.{name}.t", t, FORWARD)
    yield Check(f"mid.{name}.r", r, FORWARD)
    yield Check(f"mid.{name}.y_input", label, 0)
    losses = process.losses_at(network, x, e, t, r, wish, label)
    squares, of_velocity = (losses[key].mean() for key in ("mse", "velocity_mse"))
    yield Check(f"out.{name}.loss", losses["loss"].mean(), LOSS)
    yield Check(f"out.{name}.loss_u", squares, LOSS)
    yield Check(f"out.{name}.loss_v", of_velocity, LOSS)
    yield from _gradients(golden, network, losses["loss"], name, convert_imf.our_name)
    with torch.no_grad():
        z, told = torch.lerp(x, e, t[:, None, None, None]), {"guidance": wish.scale, "window": wish.window}
        average, velocity = network(z, t, label, t - r, **told, head="both").chunk(2, dim=1)
        instant = network(z, t, golden["in.y"], **told, head="velocity")  # the reference drops labels only later
        own, _ = process.velocities(network, z, e - x, instant, t, r, wish, golden["in.y"])
        _, guided = process.velocities(network, z, e - x, velocity, t, r, wish, label)
        change = derivative(network, z, own, t, t - r, label, told)
    yield Check(f"mid.{name}.u", average, FORWARD)
    yield Check(f"mid.{name}.v", velocity, FORWARD)
    yield Check(f"mid.{name}.v_guided", guided, FORWARD)
    yield Check(f"mid.{name}.v_cond_tangent", own, FORWARD)
    yield Check(f"mid.{name}.du_dt", change, DERIVATIVE)
    yield Check(f"mid.{name}.V", average + (t - r)[:, None, None, None] * change, DERIVATIVE)


@torch.no_grad()
def _imf_sample(golden: Golden, network: IMFDiT, steps: int, omega: float, start: float, end: float) -> Tensor:
    z, label = golden["in.sample_z"], golden["in.sample_y"]
    h = torch.full((len(z),), 1 / steps)
    window = torch.tensor([start, end]).expand(len(z), 2)

    def average(z: Tensor, t: float) -> Tensor:
        return network(z, torch.full_like(h, t), label, h, torch.full_like(h, omega), window)

    return walk(average, z, 1.0, 0.0, steps)


def _times(golden: Golden, case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """t >= r [B]; the first rows have r = t. The file's normal draws stand for uniform ones through a sigmoid."""
    mean, std = (0.0, 1.0) if case.get("noise_dist") == "uniform" else (case["P_mean"], case["P_std"])
    pair = torch.sigmoid(torch.stack([golden["in.normal_t"], golden["in.normal_r"]]) * std + mean)  # [2,B]
    t, r = pair.amax(0), pair.amin(0)
    instants = int(len(t) * case.get("data_proportion", 0.75))
    return t, torch.cat([t[:instants], r[instants:]])


def _dropped(golden: Golden, case: dict[str, Any]) -> Tensor:
    """The labels; as many as are drawn, and always the first ones, are dropped."""
    label = golden["in.y"]
    probability = {"class_dropout_prob": 0.1, **golden.config, **case}["class_dropout_prob"]
    count = int((golden["in.drop_uniform"] < probability).sum())
    return torch.cat([torch.full_like(label[:count], golden.config["num_classes"]), label[count:]])


def _gradients(
    golden: Golden, network: nn.Module, loss: Tensor, name: str, our_name: Callable[[str], str] = convert.our_name
) -> Iterator[Check]:
    """The gradients of a case that the file holds, under the reference's names."""
    return gradients(
        golden, f"out.{name}.grad.", lambda theirs: network.get_parameter(our_name(theirs)), loss, DERIVATIVE
    )


def _interval_dit(golden: Golden) -> IntervalDiT:
    """The table of labels has a null row whatever the dropout, which these codes apply outside of the network."""
    arguments = sit.from_constructor({"learn_sigma": False, **golden.config}) | {"null_row": True}
    return convert.load(IntervalDiT(**arguments), golden.group("param"))


def _imf_dit(golden: Golden) -> IMFDiT:
    side = golden.config["input_size"]
    state = golden.group("param")
    return convert_imf.load(IMFDiT(**convert_imf.imf_dit_arguments(state, (side, side))), state)


CASES: dict[str, Case] = {
    "meanflow": meanflow,
    "meanflow_port": meanflow_port,
    "imf": imf,
    **golden_shortcut.CASES,
    **golden_consistency.CASES,
}
