"""Recomputes the golden files of LightningDiT: forwards, losses with the velocity's direction, Euler samples."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.convert import sit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, recorded, scale_of, with_null
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import GUIDED_CHANNELS, guided_rows
from genlab.networks.dit import DiT
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from samplers import ode
from samplers.grids import uniform

_GUIDED = re.compile(r"cfg(?P<scale>[\d.]+)_(?:nointerval|interval(?P<start>[\d.]+))_t(?P<t>[\d.]+)")


@torch.no_grad()
def forward(golden: Golden) -> Iterator[Check]:
    """Plain and guided forwards, and the intermediates that the file has."""
    network = _network(golden)
    x, label = golden["in.x"], golden["in.y"]
    channels, half = x.shape[1], len(x) // 2
    with recorded(network) as seen:
        yield Check("out.forward", network(x, golden["in.t"], label)[:, :channels], FORWARD)
    yield from (Check(f"mid.{name}", value, FORWARD) for name, value in seen.items())
    for name in golden.group("out"):
        if match := _GUIDED.fullmatch(name):
            t, start = float(match["t"]), float(match["start"] or 0)
            scale = float(match["scale"]) if t >= start else 1.0
            guided = guided_rows(network, x, torch.full((len(x),), t), with_null(network, label[:half]), scale)
            yield Check(f"out.{name}", guided[:, :channels], FORWARD)


def losses(golden: Golden) -> Iterator[Check]:
    """Errors of velocity and of its direction, and gradients of their sum, for every distribution of times."""
    network = _network(golden)
    flow = Flow(direction_weight=1.0)
    for run, options in golden.config["variants"].items():
        t = torch.sigmoid(golden["in.normal"]) if options["lognorm"] else golden["in.u"]
        yield Check(f"mid.{run}.t", t, FORWARD)
        parts = flow.losses_at(network, golden["in.x1"], golden["in.x0"], t, golden["in.y"])
        yield Check(f"out.{run}.mse", parts["mse"], TRAJECTORY)
        yield Check(f"out.{run}.cos_loss", parts["direction"], TRAJECTORY)
        yield Check(f"out.{run}.total", parts["loss"].mean(), TRAJECTORY)
        yield from gradients(golden, f"out.{run}.grad.", network.get_parameter, parts["loss"])


@torch.no_grad()
def ode_samples(golden: Golden) -> Iterator[Check]:
    """Euler samples on shifted grids, guided from a time on; `num_steps` counts grid points."""
    network = _network(golden)
    for run in golden.config["runs"]:
        settings = FlowSampling(
            guidance=scale_of(run),
            guidance_interval=(run.get("start") or 0.0, 1.0),
            guidance_channels=GUIDED_CHANNELS,
        )
        grid = uniform(0.0, 1.0, run["num_steps"] - 1, run.get("shift") or 1.0)
        states: list[Tensor] = [golden["in.z"]]
        velocity = Flow().denoiser(network, golden["in.y"], settings)
        ode.integrate(velocity, states[0], grid, "euler", lambda progress: states.append(progress.result))  # noqa: B023
        yield Check(f"mid.{run['name']}.t_grid", grid[:-1], FORWARD)
        yield Check(f"mid.{run['name']}.traj", torch.stack(states), TRAJECTORY)
        yield Check(f"out.{run['name']}", states[-1], TRAJECTORY)


CASES: dict[str, Case] = {
    "forward": forward,
    "losses": losses,
    "ode": ode_samples,
}


def _network(golden: Golden) -> DiT:
    """Unlike DiT's, this constructor has no variance channels by default."""
    arguments = sit.from_constructor({"learn_sigma": False, **golden.config["model"]})
    return sit.load(DiT(**arguments), golden.group("param"))
