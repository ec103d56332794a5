"""Recomputes DMD2's golden files of parameterisations: every kind of teacher on a distribution known in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.convert.goldens import Case, Check, Golden
from genlab.core.errors import CheckpointError
from genlab.distillation.losses import matching_gradient
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.flow import Flow
from genlab.processes.levels import EdmLevels, FlowLevels, Levels, StepLevels, VpLevels, translate
from genlab.processes.paths import PathName
from genlab.processes.predict import to_score
from genlab.processes.schedules import ScheduleName
from genlab.processes.vp import VpDiffusion

DOUBLE = 1e-9
_PATHS: dict[str, PathName] = {
    "sit_linear": "linear",
    "sit_gvp": "gvp",
    "sit_vp": "vp",
    "repa_linear": "linear",
    "repa_cosine": "gvp",
}


def path_name(name: str) -> PathName:
    """Our name of a path. Raises CheckpointError for an unknown one."""
    if name not in _PATHS:
        raise CheckpointError(f"an unknown path {name!r}; known: {', '.join(_PATHS)}")
    return _PATHS[name]


def conversions(golden: Golden) -> Iterator[Check]:
    """States, network outputs, and what follows from them, sample by sample as levels are numbers in float64."""
    data, noise = golden["in.x"], golden["in.eps"]
    for case, (schedule, output) in golden.config["cases"].items():
        reverse = schedule.startswith("repa")  # whose time runs the other way, and so do its velocities
        levels = _levels(schedule, output)
        times = [float(t) for t in (1 - golden[f"in.t.{schedule}"] if reverse else golden[f"in.t.{schedule}"])]
        rows = [_row(golden, levels, data[i, None], noise[i, None], t) for i, t in enumerate(times)]
        found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if reverse:
            found |= {name: -found[name] for name in ("model_out_real", "model_out_fake")}
        for name, value in found.items():
            yield Check(f"out.{case}.{name}", value, DOUBLE)
    if golden.config.get("matched"):
        yield from _matched(golden)


def _row(golden: Golden, levels: Levels, data: Tensor, noise: Tensor, t: float) -> dict[str, Tensor]:
    c = levels.coefficients(t, data)
    x = levels.noised(data, noise, t)
    expected = {side: _expected(golden, side, x, c.alpha, c.sigma) for side in ("real", "fake")}
    out = {side: levels.output(value, x, t) for side, value in expected.items()}
    seen = {side: levels.data(value, x, t) for side, value in out.items()}
    if levels.kind == "data":  # of EDM the files have the denoiser, not the network inside
        out = seen
    alpha, sigma = c.alpha.view(1), c.sigma.view(1)
    return {
        "x_t": x,
        **{f"model_out_{side}": value for side, value in out.items()},
        **{f"x0_{side}": value for side, value in seen.items()},
        "eps_real": levels.noise(seen["real"], x, t),
        "score_real": to_score("data", seen["real"], x, c),
        "alpha": alpha,
        "sigma": sigma,
        "sigma_edm": sigma / alpha,
        "dm_grad": matching_gradient(data, seen["real"], seen["fake"]),
    }


def _matched(golden: Golden) -> Iterator[Check]:
    """The states of one kind of teacher as another's: in float32, as training has them."""
    cases = [(name, schedule, output) for name, (schedule, output) in golden.config["cases"].items()]
    (_, schedule, output), *others = [case for case in cases if case[1] == "edm"] + [c for c in cases if c[1] != "edm"]
    source = _levels(schedule, output)
    x, t = source.noised(golden["in.x"], golden["in.eps"], golden[f"in.t.{schedule}"]), golden[f"in.t.{schedule}"]
    for name, schedule, output in others:
        moved, _ = translate(x, t, source, _levels(schedule, output))
        yield Check(f"out.{name}.x_t", moved, 1e-5)


CASES: dict[str, Case] = {"latent_conversions": conversions, "latent_conversions_ddpm_linear": conversions}


def _levels(schedule: str, output: str) -> Levels:
    match schedule:
        case "edm":
            return EdmLevels(Edm(1.0))
        case "dimr":
            return VpLevels(VpDiffusion())
        case "sd_scaled_linear" | "ddpm_linear":
            name: ScheduleName = "linear" if schedule == "ddpm_linear" else "scaled_linear"
            return StepLevels(Diffusion(schedule=name, prediction="velocity" if output == "v_vp" else "noise"))
    return FlowLevels(Flow(path_name(schedule)))


def _expected(golden: Golden, side: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[data | x] [B,n] if the data are a mixture of round Gaussians, by the rules of normal variables."""
    weight, mean, std = (golden[f"in.{side}_{name}"] for name in ("w", "mu", "tau"))  # [M], [M,n], [M]
    total = alpha**2 * std**2 + sigma**2  # [M], the variance of x in each part
    distance = (x[:, None] - alpha * mean).square().sum(-1)  # [B,M]
    share = (weight.log() - 0.5 * mean.shape[1] * total.log() - 0.5 * distance / total).softmax(dim=1)
    parts = mean + (alpha * std**2 / total)[:, None] * (x[:, None] - alpha * mean)  # [B,M,n]
    return (share[..., None] * parts).sum(1)
