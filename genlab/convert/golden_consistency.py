"""Recomputes the golden files of consistency models (2023, iCT, ECT, sCM), progressive distillation and reflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.convert.golden_parts import gradients
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.contracts import Network
from genlab.distillation.consistency import agreement
from genlab.distillation.progressive import halved, steps_of_stage
from genlab.distillation.reflow import time_density, times, velocities, velocity_distance
from genlab.distillation.teacher_steps import denoiser, grid
from genlab.processes.consistency import Consistency
from genlab.processes.consistency_pairs import (
    ConsistencyTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    LevelWeight,
    descending,
    level_weight,
)
from genlab.processes.consistency_sampling import renoised
from genlab.processes.continuous_consistency import ContinuousConsistency
from genlab.processes.distances import Metric, distance
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling, deterministic
from genlab.processes.levels import EdmLevels, FlowLevels
from genlab.processes.paths import interpolate, linear
from samplers.noise import spawn

FORWARD, LOSS, DERIVATIVE, TABLE = 1e-5, 1e-4, 2e-4, 1e-9
_PUBLIC_TIME = 250.0  # what the networks of consistency models are told is this times ln(sigma)
_UPDATES = {150: 1_000_000, 200: 800_000}  # of the published schedules, by their last number of intervals


class TinyFlowNet(Network):
    """The stand-in of these files: three convolutions, told a time, a step of 0 and a label.

    Args:
        state: official parameters, whose shapes give the sizes; with "lv" it also tells a log-variance.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        state = {key.removeprefix("f."): value for key, value in state.items()}
        hidden, channels = state["conv_in.weight"].shape[:2]
        self.num_classes = len(state["label.weight"]) - 1
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, channels, 3, padding=1)
        self.time, self.step = nn.Linear(16, hidden), nn.Linear(16, hidden)
        self.label = nn.Embedding(self.num_classes + 1, hidden)
        if "lv.weight" in state:
            self.lv = nn.Linear(16, 1)
        self.load_state_dict(state)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, log_variance: bool = False) -> Any:
        """x [B,C,H,W], t [B], label [B] -> [B,C,H,W], and if it is asked for the log-variance [B]."""
        e = _waves(t)
        h = self.time(e) + self.step(_waves(torch.zeros_like(t))) + self.label(label)
        h = F.silu(self.conv_in(x) + h[:, :, None, None])
        out = self.conv_out(F.silu(self.mid(h)))
        return (out, 0.3 * self.lv(e).flatten()) if log_variance else out


def _waves(t: Tensor) -> Tensor:
    """[B] -> [B,16]."""
    angle = t[:, None] * 10000 ** (-torch.arange(8, dtype=t.dtype) / 8)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def consistency_2023(golden: Golden) -> Iterator[Check]:
    """Losses and gradients of CT, CD and PD; predictions, samples, schedules."""
    config, images, label = golden.config, golden["in.images"], golden["in.labels"]
    student, target, teacher = (_network(golden, f"{role}.") for role in ("student", "target", "teacher"))
    boundary = Consistency(config["sigma_data"], boundary=config["sigma_min"], time_factor=_PUBLIC_TIME)
    plain = Consistency(config["sigma_data"], boundary=0.0, time_factor=_PUBLIC_TIME)
    ends = {"highest": config["sigma_max"], "lowest": config["sigma_min"], "rho": config["rho"]}
    for name, case in config["cases"].items():
        own = EdmLevels(plain if case["kind"] == "pd" else boundary, **ends)
        index, count = golden[f"in.{name}.indices"], case["num_scales"]
        ours, theirs = denoiser(own, student, label), denoiser(own, target, label)
        guide = denoiser(EdmLevels(plain, **ends), teacher, label)
        metric: Metric = case["norm"]
        match case["kind"]:
            case "pd":
                points = grid(own, 2 * count)
                here, middle, there = (points[2 * index + late].float() for late in range(3))
                x = own.noised(images, golden["in.noise"], here)
                loss = distance(metric, ours(x, here), halved(own, guide, x, here, middle, there).data)
            case "cd":
                points = descending(ends["highest"], ends["lowest"], count, ends["rho"]).float()
                here, there = points[index], points[index + 1]
                x = own.noised(images, golden["in.noise"], here)
                loss = agreement(own, ours, theirs, guide, x, here, there, "heun", metric)
            case "ct":
                curriculum = ConsistencyTraining(
                    metric=metric,
                    sigma_min=ends["lowest"],
                    sigma_max=ends["highest"],
                    rho=ends["rho"],
                )
                points = descending(ends["highest"], ends["lowest"], count, ends["rho"])
                pair = curriculum.pair_at(index, points, config["sigma_data"])
                here = pair.high
                process = Consistency(
                    config["sigma_data"], boundary=config["sigma_min"], time_factor=_PUBLIC_TIME, curriculum=curriculum
                )
                loss = process.losses_between(student, target, images, golden["in.noise"], pair, label)["loss"]
        weight: LevelWeight = case["weight"].replace("-", "_")
        loss = level_weight(weight, here, config["sigma_data"]) * loss
        yield Check(f"out.{name}.loss", loss, LOSS)
        yield from _gradients(golden, f"{name}.grad.", student, loss, LOSS)
    yield from _predictions(golden, student, boundary, plain)
    yield from _schedules(golden)


@torch.no_grad()
def _predictions(golden: Golden, student: Network, boundary: Consistency, plain: Consistency) -> Iterator[Check]:
    config, label, sigma = golden.config, golden["in.labels"], golden["in.sigma"]
    x = golden["in.images"] + sigma[:, None, None, None] * golden["in.noise"]
    for name, process in (("boundary", boundary), ("plain", plain)):
        yield Check(f"out.denoise_{name}", process.denoise(student, x, sigma, label)[0], LOSS)
    first = torch.full((len(label),), config["sigma_max"])
    yield Check("out.onestep", boundary.denoise(student, golden["in.x_T"], first, label)[0], LOSS)

    def predict(x: Tensor, level: float) -> Tensor:
        return boundary.denoise(student, x, torch.full_like(first, level), label)[0].clamp(-1, 1)

    grid = descending(config["sigma_max"], config["sigma_min"], config.get("multistep_steps", 40), config["rho"])
    for name in golden.group("out"):
        if name.startswith("multistep_"):
            chosen = grid[[int(index) for index in name.split("_")[1:]]].tolist()
            noise = golden["in.multistep_noise"]
            *_, data = renoised(predict, golden["in.x_T"], chosen[:-1], iter(noise), config["sigma_min"])
            added = math.sqrt(max(chosen[-1] ** 2 - config["sigma_min"] ** 2, 0.0)) * noise[len(chosen) - 2]
            yield Check(f"out.{name}", data + added, LOSS)


def _schedules(golden: Golden) -> Iterator[Check]:
    """(decay of the target's average, number of levels or steps) at some updates."""
    updates = golden["in.schedule_steps"].tolist()
    for name in golden.group("out"):
        if not name.startswith("schedule."):
            continue
        kind, *numbers = name.removeprefix("schedule.").replace("_fixed", "").replace("_adaptive", "").split("_")
        match kind:
            case "cd":
                rows = [(0.95, int(numbers[0])) for _ in updates]
            case "pd":
                rows = [(1.0, steps_of_stage(update, int(numbers[0]))) for update in updates]
            case "ct":
                start, end = map(int, numbers)
                curriculum = ConsistencyTraining(intervals_start=start, intervals_end=end, steps=_UPDATES[end])
                rows = [(curriculum.target_decay(update), curriculum.intervals(update) + 1) for update in updates]
        yield Check(f"out.{name}", torch.tensor(rows, dtype=torch.float64), TABLE)


def ect(golden: Golden) -> Iterator[Check]:
    """Pairs of levels, losses and gradients, with the network's present weights for a target."""
    network = _network(golden)
    for name, case in golden.config["cases"].items():
        chosen = {**golden.config["defaults"], **case}
        curriculum = EasyConsistencyTuning(
            log_mean=chosen["P_mean"],
            log_std=chosen["P_std"],
            ratio=chosen["q"],
            mapping=chosen["adj"],
            gain=chosen["k"],
            slope=chosen["b"],
            huber=chosen["c"],
            weight="snr" if chosen["weight"] == "snrpk" else "gap",
        )
        pair = curriculum.pair_at(golden["in.normal"], chosen["stage"], 0.5)
        yield Check(f"mid.{name}.t", pair.high, FORWARD)
        yield Check(f"mid.{name}.r", pair.low, FORWARD)
        process = Consistency(0.5, boundary=0.0, curriculum=curriculum)
        loss = process.losses_between(
            network, network, golden["in.images"], golden["in.eps"], pair, golden["in.labels"]
        )["loss"]
        yield Check(f"out.{name}.loss", loss, LOSS)
        yield from _gradients(golden, f"{name}.grad.", network, loss)


def ict(golden: Golden) -> Iterator[Check]:
    """The curriculum's tables, one loss and its gradient."""
    config = golden.config
    curriculum = ImprovedConsistencyTraining(
        intervals_start=config["s0"],
        intervals_end=config["s1"],
        steps=config["K"],
        log_mean=config["P_mean"],
        log_std=config["P_std"],
    )
    yield Check("out.K_prime", torch.tensor(curriculum.stage), 0)
    yield Check("out.N", torch.tensor([curriculum.levels(update) for update in golden["in.k"].tolist()]), 0)
    for name in golden.group("out"):
        if name.startswith("sigma_"):
            count = int(name.removeprefix("sigma_"))
            levels = curriculum.grid_of(count)
            yield Check(f"out.sigma_{count}", levels, TABLE)
            yield Check(f"out.prob_{count}", curriculum.probabilities(levels), TABLE)
            yield Check(f"out.weight_{count}", 1 / levels.diff(), TABLE)
    network, process = _network(golden), Consistency(0.5, boundary=0.0, curriculum=curriculum)
    pair = curriculum.pair_at(golden["in.index"], curriculum.grid_of(config["N_for_loss"]))
    loss = process.losses_between(network, network, golden["in.images"], golden["in.noise"], pair, golden["in.labels"])[
        "loss"
    ]
    yield Check("out.loss", loss, LOSS)
    yield from _gradients(golden, "grad.", network, loss)


def scm(golden: Golden) -> Iterator[Check]:
    """Angles, states, derivatives along the flow, losses and gradients of sCT and sCD."""
    config, sigma, label = golden.config, golden["in.sigma"], golden["in.labels"]
    student, teacher = _network(golden, "student."), _network(golden, "teacher.")
    for name, case in config["cases"].items():
        process = ContinuousConsistency(
            config["sigma_data"],
            uncertainty=True,
            norm="rms" if case.get("g_norm_spatial_invariance", True) else "l2",
            prior_weight=case.get("prior_weighting_enabled", True),
            per_element=case.get("divide_x_0_spatial_dim", True),
        ).at(case["iteration"])
        flow = process.guided_velocity(teacher, label, case["guidance_scale"] or 1.0) if case["use_cd"] else None
        state = process.state(golden["in.images"], golden["in.z_unit"], sigma, flow)
        bare = process.velocity(student, label)
        with torch.no_grad():
            f = bare(state.x / process.sigma_data, state.angle)
        yield Check(f"mid.{name}.t_hat", state.angle, FORWARD)
        yield Check(f"mid.{name}.x_t", state.x, FORWARD)
        yield Check(f"mid.{name}.dx_dt", state.slope, FORWARD)
        yield Check(f"mid.{name}.F", f, FORWARD)
        yield Check(f"mid.{name}.jvp", process.tangent(bare, f, state).derivative, DERIVATIVE)
        losses = process.losses_of(student, state, sigma, label)
        yield Check(f"out.{name}.logvar", losses["log_variance"][:, None], FORWARD)
        yield Check(f"out.{name}.unweighted", losses["error"], LOSS)
        yield Check(f"out.{name}.loss", losses["loss"], LOSS)
        yield from _gradients(golden, f"{name}.grad.", student, losses["loss"])


def progressive_vp(golden: Golden) -> Iterator[Check]:
    """Two DDIM steps on the cosine path, the target they imply, the weighted loss and its gradient."""
    count, images, label = golden.config["N"], golden["in.images"], golden["in.labels"]
    student, teacher = (_network(golden, f"{role}.") for role in ("student", "teacher"))
    own = FlowLevels(Flow(path="gvp"))

    def on_our_path(
        network: Network,
    ) -> Callable[..., Tensor]:  # the file's time is 1 at the noise, v = alpha e - sigma x
        return lambda x, t, label: -0.5 * math.pi * network(x, 1 - t, label)

    t = golden["in.i"].float() / count
    here, middle, there = 1 - t, 1 - (t - 0.5 / count), 1 - (t - 1 / count)
    x = own.noised(images, golden["in.noise"], here)
    found = halved(own, denoiser(own, on_our_path(teacher), label), x, here, middle, there)
    yield Check("mid.z_t", x, FORWARD)
    yield Check("mid.z_mid", found.middle, FORWARD)
    yield Check("mid.z_end", found.end, FORWARD)
    yield Check("out.target_x", found.data, FORWARD)
    c = own.coefficients(here, here)
    weight = level_weight("truncated_snr", c.sigma / c.alpha, 0.5)
    yield Check("out.weight", weight, FORWARD)
    loss = weight * distance("l2", denoiser(own, on_our_path(student), label)(x, here), found.data)
    yield Check("out.loss", loss, LOSS)
    yield from _gradients(golden, "grad.", student, loss)


def reflow(golden: Golden) -> Iterator[Check]:
    """Pairs of a guided Euler solver, times, the states between, losses and a gradient."""
    config, label, z = golden.config, golden["in.labels"], golden["in.z"]
    student, teacher = _network(golden, "student."), _network(golden, "teacher.")
    flow, settings = Flow(), FlowSampling(sampler="euler", steps=config["steps"], guidance=config["guidance"])
    with torch.no_grad():
        velocity = flow.denoiser(_Reversed(teacher), label, settings)
        data = deterministic(flow.path, velocity, z, (0.0, 1.0), settings, spawn(0, range(len(z))), None)
    yield Check("out.x", data, FORWARD)
    t = times(golden["in.u"], golden["in.branch"], config["a"]).float()
    yield Check("out.t", t, FORWARD)
    if "mid.pdf_grid" in golden.tensors:
        at = golden["mid.pdf_grid"][0]
        yield Check("mid.pdf_grid", torch.stack([at, time_density(at, config["a"])]), TABLE)
    yield Check("out.z_t", interpolate(linear((1 - t).view(-1, 1, 1, 1)), data, z), FORWARD)
    ours, wanted = velocities(flow, _Reversed(student), data, z, 1 - t, label)
    yield Check("out.l2", velocity_distance("square", ours, wanted), LOSS)
    yield Check("out.huber", huber := velocity_distance("huber", ours, wanted), LOSS)
    yield from _gradients(golden, "grad.", student, huber)


def _network(golden: Golden, prefix: str = "") -> TinyFlowNet:
    group = golden.group("param")
    return TinyFlowNet({key.removeprefix(prefix): value for key, value in group.items() if key.startswith(prefix)})


class _Reversed(Network):
    """A network whose time is 1 at the noise, on flows whose time is 1 at the data."""

    def __init__(self, network: Network):
        super().__init__()
        self.network, self.num_classes = network, network.num_classes

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return -self.network(x, 1 - t, label)


def _gradients(
    golden: Golden, prefix: str, network: nn.Module, loss: Tensor, tolerance: float = DERIVATIVE
) -> Iterator[Check]:
    """The gradients in the file, below `prefix`."""
    return gradients(
        golden, f"out.{prefix}", lambda name: network.get_parameter(name.removeprefix("f.")), loss, tolerance
    )


CASES: dict[str, Case] = {
    "consistency_2023": consistency_2023,
    "ect": ect,
    "ict_own_text": ict,
    "scm": scm,
    "progressive_vp_own_text": progressive_vp,
    "reflow_own_text": reflow,
}
