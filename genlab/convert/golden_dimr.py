"""Recomputes the golden files of DiMR: forwards, losses, samples, the solver alone, and time-dependent norms.

The reference writes the time as 8 n / 1000 - 4 for step n, numbers the null class among the classes, and counts
guidance from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from genlab.convert import dimr
from genlab.convert.golden_schedules import Betas
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.dimr import DiMR
from genlab.networks.dimr_stage import Stage
from genlab.nn.td_norm import TdLayerNorm, TdRmsNorm, TimeVectors
from genlab.processes.vp import pooled_noise
from genlab.processes.vp_sampling import VpSampling
from samplers import dpm_solver, vp_schedule
from samplers.vp_schedule import Level

TIGHT, LOOSE, SOLVER, DOUBLE = 1e-5, 1e-4, 2e-6, 1e-9
_REFERENCE_TIMES = (-4.0, 4.0)
_SPACINGS: dict[str, vp_schedule.Spacing] = {
    "time_uniform": "time",
    "logSNR": "log_snr",
    "t2": "time_quadratic",
    "time_quadratic": "time_quadratic",
}


@torch.no_grad()
def forward(golden: Golden) -> Iterator[Check]:
    """The predictions of all stages, and where the file has them the features that each stage passes on."""
    network, tolerance = _network(golden, time_range=_REFERENCE_TIMES).eval(), _tolerance(golden)
    features = _recorded(network)
    for suffix in ("_uniform_t", ""):
        if (t := golden.tensors.get("in.log_snr" + suffix.removesuffix("_t"))) is None:
            continue
        for index, out in enumerate(network(golden["in.x"], t, _label(golden), every_resolution=True)):
            yield Check(f"out.branch{index}{suffix}", out, tolerance)
    for index, stage in enumerate(network.stages):
        if f"mid.stage{index}_skips" in golden.tensors:
            rows, columns = golden[f"mid.stage{index}_skips"].shape[1:3]
            maps = [h.flatten(1, -2)[:, -rows * columns :] for h in features[stage]]  # of [B,h*w,D]
            yield Check(f"mid.stage{index}_skips", torch.cat(maps, dim=2).unflatten(1, (rows, columns)), tolerance)


def loss(golden: Golden) -> Iterator[Check]:
    """Losses, targets and the gradients of all parameters."""
    network, tolerance = _network(golden), _tolerance(golden)
    weights = tuple(golden.config.get("loss_coeffs", ())) or None
    process = _betas(golden).vp(len(network.stages), weights)
    data, noise, step = golden["in.x0"], golden["in.eps"], golden["in.n"]
    yield Check("mid.xn", process.noised(data, noise, step), TIGHT)
    for name in golden.group("mid"):
        if name.startswith("target_w"):
            width = int(name.removeprefix("target_w"))
            yield Check(f"mid.{name}", pooled_noise(noise, noise.shape[-1] // width), TIGHT)
    losses = process.loss_at(network, data, noise, step, _label(golden))["loss"]
    yield Check("out.loss", losses, tolerance)
    yield Check("out.loss_mean", losses.mean(), tolerance)
    losses.mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    gradients = dimr.to_official(network, found)
    for name, expected in golden.group("out").items():
        if name.startswith("grad."):  # what the network never reads has none
            gradient = gradients.get(name.removeprefix("grad."), torch.zeros_like(expected))
            yield Check(f"out.{name}", gradient, LOOSE)


@torch.no_grad()
def sample(golden: Golden) -> Iterator[Check]:
    """Guided samples, with the times of all evaluations and the states between."""
    network, tolerance = _network(golden).eval(), _tolerance(golden)
    process = _betas(golden).vp()
    schedule = process.continuous()
    for name, run in golden.config["runs"].items():
        guided = process.denoiser(network, _label(golden), _guidance(run))
        times: list[float] = []
        states: list[Tensor] = []

        def model(x: Tensor, level: Level) -> Tensor:
            times.append(level.t)  # noqa: B023 (called at once)
            return (x - level.sigma * guided(x, level.t * process.steps)) / level.alpha  # noqa: B023

        nodes = vp_schedule.levels(schedule, vp_schedule.grid(schedule, 1.0, 1e-3, run["steps"]))
        groups = dpm_solver.group_sizes(run["steps"], run.get("order", 3))
        dpm_solver.singlestep(model, golden["in.z"], nodes, groups, on_step=lambda p: states.append(p.result))  # noqa: B023
        yield Check(f"mid.{name}.t_eval", torch.tensor(times), TIGHT)
        yield Check(f"mid.{name}.x_after_group", torch.stack(states), tolerance)
        yield Check(f"out.{name}.z", states[-1], tolerance)


def solver(golden: Golden) -> Iterator[Check]:
    """The solver on a closed-form model, in single and double precision, and the tables of the schedule."""
    betas = Betas.parse(golden.config["beta"]) if "beta" in golden.config else Betas()
    schedule = betas.vp().continuous()
    t = golden["in.t_query"].double()
    log_alpha = schedule.log_alpha(t)
    log_snr = vp_schedule.half_log_snr(log_alpha)
    yield Check("out.betas", betas.table(), TIGHT)
    yield Check("out.log_alpha", log_alpha, TIGHT)
    yield Check("out.sigma", (-torch.expm1(2 * log_alpha)).sqrt(), TIGHT)
    yield Check("out.lambda", log_snr, TIGHT)
    yield Check("out.inverse_lambda_of_lambda", vp_schedule.time_of(schedule, log_snr), TIGHT)
    for name, run in golden.config["runs"].items():
        run = {**golden.config["defaults"], **run}
        tolerance = 1e-4 if run["method"] == "adaptive" else TIGHT if run.get("sched") == "cosine" else SOLVER
        states, times = _solve(golden, run, schedule, torch.float32)
        yield Check(f"out.{name}.x", states, tolerance)
        if run["method"] != "adaptive":
            yield Check(f"mid.{name}.t_eval", torch.tensor(times), TIGHT)
        if f"ref64.{name}.x" in golden.tensors:
            tolerance = 1e-4 if run["method"] == "adaptive" else DOUBLE
            yield Check(f"ref64.{name}.x", _solve(golden, run, schedule, torch.float64)[0], tolerance)


def td_norm(golden: Golden) -> Iterator[Check]:
    """Each norm on vectors and maps, at times of each sample and of all, with its gradients."""
    kinds: dict[str, Callable[[int, TimeVectors], TdRmsNorm | TdLayerNorm]] = {
        "tdrms": TdRmsNorm,
        "tdrms_bias": lambda width, times: TdRmsNorm(width, times, bias=True),
        "tdln": TdLayerNorm,
    }
    for kind, width in golden.config["dims"].items():
        times = TimeVectors()
        norm = kinds[kind](width, times)
        times.allocate()
        state = {name.removeprefix(f"{kind}."): value for name, value in golden.group("param").items()}
        for ours, theirs in dimr.TIMES.items():
            getattr(times, ours).data = torch.cat([state[f"{slot}.{theirs}"] for slot in norm.slots])
        for suffix in ("_uniform", ""):
            c = golden[f"in.{kind}.log_snr{suffix}"] / 4
            vectors = times(c)
            for slot, number in norm.slots.items():
                name = f"mid.{kind}.{slot}_at_t{suffix}"
                yield Check(name, vectors[number][: len(golden[name])], TIGHT)
            yield Check(f"out.{kind}.y_3d{suffix}", norm(golden[f"in.{kind}.x_3d"], vectors), TIGHT)
            x = golden[f"in.{kind}.x_4d"].clone().requires_grad_()
            y = norm(x, vectors)
            yield Check(f"out.{kind}.y_4d{suffix}", y, TIGHT)
        (y * golden[f"in.{kind}.gout_4d"]).sum().backward()
        assert x.grad is not None
        yield Check(f"out.{kind}.grad_x", x.grad, TIGHT)
        for ours, theirs in dimr.TIMES.items():
            parts = getattr(times, ours).grad.split(times.widths)
            for slot, part in zip(norm.slots, parts):
                yield Check(f"out.{kind}.grad.{slot}.{theirs}", part, TIGHT)


CASES: dict[str, Case] = {
    "forward": forward,
    "loss": loss,
    "sample": sample,
    "dpm_solver": solver,
    "td_norm": td_norm,
}


def _network(golden: Golden, **options: Any) -> DiMR:
    network = DiMR(**dimr.from_constructor(golden.config), **options)
    return dimr.load(network, golden.group("param"))


def _tolerance(golden: Golden) -> float:
    """Cosine attention and the conditioned norm are sensitive to rounding."""
    return LOOSE if golden.config.get("pe_type") or golden.config.get("norm_type") == "ADARMSN" else TIGHT


def _label(golden: Golden) -> Tensor:
    """The labels; all zero for an unconditional network."""
    rows = next(golden[name] for name in ("in.x", "in.x0", "in.z") if name in golden.tensors)
    return golden.tensors.get("in.y", torch.zeros(len(rows), dtype=torch.int64))


def _recorded(network: DiMR) -> dict[nn.Module, list[Tensor]]:
    """Fills, in every forward, with the input of each stage's first block and the outputs of all its blocks."""
    features: dict[nn.Module, list[Tensor]] = {stage: [] for stage in network.stages}
    for stage in cast(list[Stage], list(network.stages)):
        stage.blocks[0].register_forward_pre_hook(lambda _block, args, s=stage: features.update({s: [args[0]]}))
        for block in stage.blocks:
            block.register_forward_hook(lambda _block, _args, out, s=stage: features[s].append(out))
    return features


def _betas(golden: Golden) -> Betas:
    names = {"kind": "kind", "linear_start": "start", "linear_end": "end", "n_timestep": "steps"}
    return Betas(**{names[key]: value for key, value in golden.config.get("schedule", {}).items() if key in names})


def _guidance(run: dict[str, Any]) -> VpSampling:
    """The reference's constant s stands for 1 + s; with a power it is the scale itself; and 0 for none."""
    scale, power = run.get("cfg", 0.0), run.get("cfg_scale_pow", -1)
    if scale == 0 or power == 0:
        return VpSampling()
    return VpSampling(guidance=scale, guidance_power=power) if power > 0 else VpSampling(guidance=1 + scale)


def _solve(
    golden: Golden, run: dict[str, Any], schedule: vp_schedule.Schedule, dtype: torch.dtype
) -> tuple[Tensor, list[float]]:
    """One run's result, and the times of its model calls."""
    known: dict[str, vp_schedule.Schedule] = {"linear": vp_schedule.Linear(), "cosine": vp_schedule.Cosine()}
    schedule = known.get(run.get("sched", ""), schedule)
    weight, bias = golden["param.W"].to(dtype), golden["param.b"].to(dtype).view(-1, 1, 1)
    form: dpm_solver.Form = "data" if run.get("x0pred", run["predict_x0"]) else "noise"
    times: list[float] = []

    def noise_in(x: Tensor, level: Level) -> Tensor:
        times.append(level.t)
        return torch.tanh(0.7 * torch.einsum("oc,bchw->bohw", weight, x) + bias * (1 + level.t)) + 0.3 * x

    def data_of(x: Tensor, noise: Tensor, level: Level) -> Tensor:
        data = (x - level.sigma * noise) / level.alpha
        return dpm_solver.threshold(data, limit=run.get("max_val", 1.0)) if run.get("thresholding") else data

    def model(x: Tensor, level: Level) -> Tensor:
        noise = noise_in(x, level)
        return noise if form == "noise" else data_of(x, noise, level)

    x, start, end = golden["in.x_T"].to(dtype), run.get("T", 1.0), golden.config.get("eps", 1e-3)
    rule: dpm_solver.Rule = "taylor" if run["solver_type"] == "taylor" else "midpoint"
    order = run["order"]
    if run["method"] == "adaptive":
        x = dpm_solver.adaptive(model, x, schedule, start, end, order, form, rule)
    else:
        steps = run["steps"] // order if run["method"] == "singlestep" else run["steps"]
        grid = vp_schedule.grid(schedule, start, end, steps, _SPACINGS[run["skip_type"]])
        groups = dpm_solver.group_sizes(steps, order)
        if run["method"] == "singlestep":
            grid, groups = vp_schedule.refine(schedule, grid, order), [order] * steps
        x = dpm_solver.singlestep(model, x, vp_schedule.levels(schedule, grid), groups, form, rule)
    if run.get("denoise"):
        last = vp_schedule.levels(schedule, torch.tensor([end], dtype=torch.float64))[0]
        x = data_of(x, model(x, last), last)  # the reference takes a prediction of the data for one of the noise
    return x, times
