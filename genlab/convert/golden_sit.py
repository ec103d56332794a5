"""Recomputes the golden files of SiT: forwards, paths, losses, ODE and SDE samples, likelihoods and training steps.

The reference counts grid points where genlab counts steps, and spaces them in float32; its other ways that differ from
ours are in `sit_reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from genlab.convert import sit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, recorded, scale_of, trained, with_null
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import GUIDED_CHANNELS, diffusion_form, guided_rows, reference_interval, torchdiffeq
from genlab.networks.dit import DiT
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.likelihood import gaussian_log_density, log_likelihood
from genlab.processes.paths import PATHS, coefficients, diffusion, interpolate
from genlab.processes.predict import to_data, to_noise, to_score, to_velocity
from samplers import ode, sde

ADAPTIVE = 2e-3
_METHODS = {"heun2": "heun"}  # torchdiffeq's name -> ours; others agree, or are only torchdiffeq's


def forward(golden: Golden) -> Iterator[Check]:
    """Plain and guided forwards, and the intermediates that the file has."""
    network = _network(golden)
    x, t, label = golden["in.x"], golden["in.t"], golden["in.y"]
    with recorded(network) as seen:
        yield Check("out.forward", network(x, t, label)[:, : x.shape[1]], FORWARD)
    yield from (Check(f"mid.{name}", value, FORWARD) for name, value in seen.items() if f"mid.{name}" in golden.tensors)
    for scale in golden.config.get("cfg_scales", []):
        half = len(x) // 2
        guided = guided_rows(network, x, t[:half].repeat(2), with_null(network, label[:half]), scale)
        yield Check(f"out.cfg_{scale}", guided[:, : x.shape[1]], FORWARD)


def paths(golden: Golden) -> Iterator[Check]:
    """Coefficients, diffusion forms, conversions and the table of intervals."""
    t, x, v, x0 = (golden[f"in.{name}"] for name in ("t", "x", "v", "x0"))
    for name in golden.group("out"):
        if name == "interval_table":
            table = [reference_interval(*entry[:4], **entry[4]) for entry in golden.config["intervals"]]
            yield Check("out.interval_table", torch.tensor(table, dtype=torch.float64), FORWARD)
            continue
        path, quantity, *form = name.split(".", 3)
        flat = PATHS[path.lower()](t)
        c = coefficients(path.lower(), t, x)  # type: ignore[arg-type]
        if quantity == "D":
            value = diffusion(diffusion_form(form[0]), t, flat, float(form[1]))  # type: ignore[arg-type]
        else:
            value = {
                "alpha": flat.alpha,
                "sigma": flat.sigma,
                "d_alpha": flat.d_alpha,
                "d_sigma": flat.d_sigma,
                "d_alpha_over_alpha": flat.d_alpha / flat.alpha,
                "drift_mean": -c.d_alpha / c.alpha * x,  # the reference's drift runs from data to noise
                "drift_var": flat.score_gain,
                "x_t": interpolate(c, x, x0),
                "u_t": c.d_alpha * x + c.d_sigma * x0,
                "score_from_velocity": to_score("velocity", v, x, c),
                "noise_from_velocity": to_noise("velocity", v, x, c),
                "velocity_from_score": to_velocity("score", v, x, c),
            }[quantity]
        yield Check(f"out.{name}", value, FORWARD)


def training_losses(golden: Golden) -> Iterator[Check]:
    """Per-sample losses and gradients of their mean, for every `path.prediction.weight` in the file."""
    network = _network(golden)
    x1, x0, label = golden["in.x1"], golden["in.x0"], golden["in.y"]
    outputs = golden.group("out")
    for run in sorted({".".join(name.split(".")[:3]) for name in outputs}):
        path, prediction, weight = run.split(".")
        flow = _flow({**golden.config, "path": path, "prediction": prediction, "loss_weight": weight})
        t = _training_time(golden.config, path, prediction, golden["in.u"])
        loss = flow.loss_at(network, x1, x0, t, label)
        if f"mid.{path}.{prediction}.t" in golden.tensors:
            yield Check(f"mid.{path}.{prediction}.t", t, FORWARD)
        yield Check(f"out.{run}.loss", loss, TRAJECTORY)
        yield from gradients(golden, f"out.{run}.grad.", network.get_parameter, loss)


@torch.no_grad()
def sample_ode(golden: Golden) -> Iterator[Check]:
    """Probability-flow samples; for fixed steps also the states and times on the way."""
    network = _network(golden)
    for run in golden.config["runs"]:
        run = {**golden.config, **run}
        method = _METHODS.get(run["method"], run["method"])
        grid = torch.linspace(*_run_interval(run, eval=True, reverse=run.get("reverse", False)), run["num_steps"])
        name, x = run["name"], golden["in.z"]
        if method not in ode.TABLEAUS:
            states = _by_torchdiffeq(golden, network, run, grid)
            yield Check(f"mid.{name}.traj", states[1:], ADAPTIVE)
            yield Check(f"out.{name}", states[-1], ADAPTIVE)
            continue
        times: list[float] = []
        field = _timed(_velocity(network, run, golden["in.y"]), times)
        visited = [x]
        ode.integrate(field, x, grid, method, _collect(visited))
        yield Check(f"mid.{name}.t_eval", torch.tensor(times, dtype=torch.float64), FORWARD)
        yield Check(f"mid.{name}.traj", torch.stack(visited), TRAJECTORY)
        yield Check(f"out.{name}", visited[-1], TRAJECTORY)


@torch.no_grad()
def sample_sde(golden: Golden) -> Iterator[Check]:
    """SDE samples under given noise, and the states on the way."""
    network = _network(golden)
    for run in golden.config["runs"]:
        run = {**golden.config, **run}
        states = list(_sde_states(golden, network, run))
        yield Check(f"mid.{run['name']}.traj", torch.stack(states), TRAJECTORY)
        yield Check(f"out.{run['name']}", states[-1], TRAJECTORY)


def _sde_states(golden: Golden, network: DiT, run: dict[str, Any]) -> list[Tensor]:
    """The num_steps - 1 states after the noisy steps, and the one after the last step."""
    path, form = run["path"].lower(), diffusion_form(run.get("form", "SBDM"))
    rule = (run.get("last_step", "Mean") or "none").lower()
    size = (run.get("last_step_size") or 0.04) if rule != "none" else 0.0
    start, end = _run_interval(run, sde=True, last_step_size=size)
    grid = torch.linspace(start, end, run["num_steps"])
    velocity = _velocity(network, run, golden["in.y"])

    def field(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        v = velocity(x, t)
        return v, to_score("velocity", v, x, coefficients(path, t, x))

    def strength(t: float) -> float:
        at = torch.tensor(t, dtype=torch.float64)
        return diffusion(form, at, PATHS[path](at), run.get("norm", 1.0)).item()  # type: ignore[arg-type]

    x, states = golden["in.z"], list[Tensor]()
    draws = iter(golden["in.noise"][:, : len(x)])
    integrate = {"Euler": sde.euler_maruyama, "Heun": sde.heun}[run["method"]]
    x = integrate(field, strength, x, grid, lambda: next(draws), _collect(states))
    t = grid[-1].item()
    v, score = field(x, t) if rule != "none" else (x, x)
    data = to_data("velocity", v, x, coefficients(path, t, x))
    return [*states, sde.finish(rule, x, v, score, data, strength(t), size)]  # type: ignore[arg-type]


@torch.no_grad()
def likelihood(golden: Golden) -> Iterator[Check]:
    """Log-likelihoods under given probes, one for each evaluation."""
    network = _network(golden)
    x = golden["in.x"]
    for run in golden.config["runs"]:
        run = {**golden.config, **run}
        grid = 1 - torch.linspace(*_run_interval(run, eval=True), run["num_steps"])
        probes = iter(2.0 * golden["in.eps_bits"] - 1.0)
        method = _METHODS.get(run["method"], run["method"])
        velocity = _velocity(network, run, golden["in.y"])
        density, noise = log_likelihood(velocity, x, grid, lambda: next(probes), method)  # noqa: B023 (called at once)
        yield Check(f"mid.{run['name']}.prior_logp", gaussian_log_density(noise), TRAJECTORY)
        yield Check(f"out.{run['name']}.logp", density, TRAJECTORY)
        yield Check(f"out.{run['name']}.z", noise, TRAJECTORY)


def train_steps(golden: Golden) -> Iterator[Check]:
    """AdamW steps under given draws: losses, final parameters and their moving average."""
    config = golden.config
    network, flow = _network(golden), _flow(config)

    def loss(step: int, label: Tensor) -> Tensor:
        t = _training_time(config, config["path"], config["prediction"], golden["in.u"][step])
        return flow.loss_at(network, golden["in.x1"][step], golden["in.x0"][step], t, label)

    yield from trained(golden, network, loss)


CASES: dict[str, Case] = {
    "forward": forward,
    "paths": paths,
    "training_losses": training_losses,
    "sample_ode": sample_ode,
    "sample_sde": sample_sde,
    "likelihood": likelihood,
    "train_steps": train_steps,
}


def _run_interval(run: dict[str, Any], **flags: Any) -> tuple[float, float]:
    return reference_interval(run["path"], run["prediction"], run.get("train_eps"), run.get("sample_eps"), **flags)


def _training_time(config: dict[str, Any], path: str, prediction: str, u: Tensor) -> Tensor:
    start, end = reference_interval(path, prediction, config.get("train_eps"), config.get("sample_eps"))
    return u * (end - start) + start


def _network(golden: Golden) -> DiT:
    return sit.load(DiT(**sit.from_constructor(golden.config["model"])), golden.group("param"))


def _flow(run: dict[str, Any]) -> Flow:
    """The reference ignores the loss weight of velocities."""
    weight = "none" if run["prediction"] == "velocity" else (run.get("loss_weight") or "none").lower()
    return Flow(path=run["path"].lower(), prediction=run["prediction"], loss_weight=weight)  # type: ignore[arg-type]


def _velocity(network: DiT, run: dict[str, Any], label: Tensor) -> ode.Field:
    """The velocity of n rows, guided by genlab's own wrapper."""
    settings = FlowSampling(guidance=scale_of(run), guidance_channels=GUIDED_CHANNELS)
    return _flow(run).denoiser(network, label, settings)


def _collect(states: list[Tensor]) -> ode.OnStep:
    return lambda progress: states.append(progress.result)


def _timed(field: ode.Field, times: list[float]) -> ode.Field:
    def timed(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return field(x, t)

    return timed


def _by_torchdiffeq(golden: Golden, network: DiT, run: dict[str, Any], grid: Tensor) -> Tensor:
    """The states [points, n, ...] of a method that only torchdiffeq has; guided, the reference evolves 2n rows."""
    x, label, scale = golden["in.z"], golden["in.y"], run.get("cfg_scale")
    model: Callable[..., Tensor] = network
    rows = x
    if scale is not None:
        rows, label = torch.cat([x, x]), with_null(network, label)

        def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return guided_rows(network, x, t, label, scale)

    field = _flow(run).denoiser(model, label, FlowSampling())  # type: ignore[arg-type]
    evaluations = golden.tensors.get(f"mid.{run['name']}.t_eval")
    states = torchdiffeq(field, rows, grid, run["method"], run.get("rtol", 1e-3), run.get("atol", 1e-6), evaluations)
    return states[:, : len(x)]
