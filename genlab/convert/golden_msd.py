"""Recomputes the golden files of multi-student distillation: partitions, routing, teacher score matching."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.convert import edm
from genlab.convert.golden_dmd2 import TinyLatentNet
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.errors import CheckpointError
from genlab.distillation.partition import along, consecutive
from genlab.distillation.score_matching import matching
from genlab.networks.routed import Routed
from genlab.processes.edm import Edm
from genlab.processes.paths import PATHS, Coefficients, interpolate
from genlab.processes.predict import Prediction, to_data
from genlab.processes.schedules import alpha_bars

TIGHT, EXACT = 1e-5, 0.0
_PARTITION = re.compile(r"class_to_student\.N(?P<classes>\d+)\.K(?P<students>\d+)")


@torch.no_grad()
def routing(golden: Golden) -> Iterator[Check]:
    """Partitions of several sizes, and a mixed batch of one-step samples x = z + v_k(z, t=0, y) in its order."""
    config = golden.config
    for name in golden.group("out"):
        if match := _PARTITION.fullmatch(name):
            owners = consecutive(int(match["classes"]), int(match["students"]))
            yield Check(f"out.{name}", torch.tensor(owners), EXACT)
    permutation = golden.tensors.get("in.permutation")
    if permutation is not None:
        owners = along(permutation.tolist(), len(permutation), config["K"])
        yield Check("out.class_to_student.permuted", torch.tensor(owners), EXACT)
    students = [
        _tiny(golden, f"student{k}.", config["hid"], _num_classes(golden, "student0.")) for k in range(config["K"])
    ]
    router = Routed(students, consecutive(config["num_classes"], config["K"]))
    samples = [0] * config["K"]
    for k, student in enumerate(students):
        student.register_forward_pre_hook(lambda _module, inputs, k=k: samples.__setitem__(k, len(inputs[0])))
    z, label = golden["in.noise"], golden["in.labels"]
    yield Check("out.student_of_sample", router.owners[label], EXACT)
    yield Check("out.samples", z + router(z, torch.zeros(len(z)), label), TIGHT)
    yield Check("out.calls_per_student", torch.tensor(samples), EXACT)


def tsm_edm(golden: Golden) -> Iterator[Check]:
    """EDM's weighted error between two denoisers, and its gradients."""
    config, state = golden.config, golden.group("param")
    teacher, student = (
        edm.put(edm.build(edm.from_constructor(config[role])), _below(state, f"{role}."))
        for role in ("teacher", "student")
    )
    process = Edm(config["sigma_data"], config["P_mean"], config["P_std"])
    sigma = (process.log_mean + process.log_std * golden["in.rnd_normal"]).exp()
    data, noise = golden["in.images"], golden["in.noise"]
    label = golden.tensors.get("in.class_labels", torch.zeros(len(data), 0))
    asked = partial(process.losses_at, data=data, noise=noise, sigma=sigma.flatten(), label=label)
    loss = matching(student, teacher, asked)["loss"].mean()
    loss.backward()
    yield Check("out.sigma", sigma, TIGHT)
    yield Check("out.loss", loss, TIGHT)
    x = data + sigma * noise
    for role, network in (("teacher", teacher), ("student", student)):
        with torch.no_grad():
            yield Check(f"out.{role}_D", process.denoise(network, x, sigma.flatten(), label)[0], TIGHT)
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    yield Check("out.grad_norm", torch.stack([grad.norm() for grad in found.values()]).norm(), TIGHT)
    official = edm.official(student, found)
    for name, stored in golden.group("out").items():
        if name.startswith("student_grad."):
            yield Check(
                f"out.{name}", official.get(name.removeprefix("student_grad."), torch.zeros_like(stored)), TIGHT
            )


def tsm_latent(golden: Golden) -> Iterator[Check]:
    """For each teacher's parameterisation: the noised data, errors in what it predicts and in data, gradients."""
    config = golden.config
    for run, (schedule, output, times) in config["cases"].items():
        teacher, student = (
            _tiny(golden, f"{role}.", config[f"{role}_hid"], _num_classes(golden, f"{role}."))
            for role in ("teacher", "student")
        )
        level = _level(schedule, output, golden[f"in.{times}"])
        x = interpolate(level.coefficients, golden["in.latents"].double(), golden["in.noise"].double()).float()
        yield Check(f"out.{run}.x_t", x, TIGHT)
        asked = partial(_asked, x=x, t=level.t, label=golden["in.labels"])
        gap = matching(student, teacher, asked)["loss"]
        gap.mean().backward()
        with torch.no_grad():
            outputs = [asked(network)["loss"] for network in (student, teacher)]
        yield Check(f"out.{run}.teacher_out", outputs[1], TIGHT)
        yield Check(f"out.{run}.native_mse_per_sample", gap, TIGHT)
        yield Check(f"out.{run}.loss", gap.mean(), TIGHT)
        ours, theirs = (to_data(level.prediction, out.double(), x.double(), level.coefficients) for out in outputs)
        yield Check(f"out.{run}.x0_mse_per_sample", (ours - theirs).square().flatten(1).mean(1), TIGHT)
        prefix = f"out.{run}.student_grad."
        for name in golden.tensors:
            if name.startswith(prefix):
                gradient = student.get_parameter(name.removeprefix(prefix)).grad
                assert gradient is not None
                yield Check(name, gradient, TIGHT)


CASES: dict[str, Case] = {"routing": routing, "tsm_edm": tsm_edm, "tsm_latent": tsm_latent}


class _Level(NamedTuple):
    """Noise levels of a batch, as a teacher names them."""

    coefficients: Coefficients
    """float64 [B,1,1,1]."""
    t: Tensor
    """[B], what the network is told."""
    prediction: Prediction


def _level(schedule: str, output: str, t: Tensor) -> _Level:
    """The rows of the spec's table of latent teachers. Raises CheckpointError for an unknown one."""
    predictions: dict[str, Prediction] = {"eps": "noise", "flow": "velocity", "v_vp": "velocity", "x0": "data"}
    if output not in predictions:
        raise CheckpointError(f"an unknown output of a teacher: {output}; known are {', '.join(predictions)}")
    if schedule == "edm":
        alpha = torch.ones_like(t.double())
        found = Coefficients(alpha, t.double(), torch.zeros_like(alpha), alpha)
    elif schedule in _TABLES:
        betas, first = _TABLES[schedule]
        alpha_bar = alpha_bars(betas, 1000)[t.long() - first]
        found = Coefficients(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), -(1 - alpha_bar).sqrt(), alpha_bar.sqrt())
    elif schedule in _PATHS:
        path, reverse = _PATHS[schedule]
        found = PATHS[path](1 - t.double() if reverse else t.double())
        if reverse:
            found = found._replace(d_alpha=-found.d_alpha, d_sigma=-found.d_sigma)
    else:
        known = ", ".join(["edm", *_TABLES, *_PATHS])
        raise CheckpointError(f"an unknown schedule of a teacher: {schedule}; known are {known}")
    wide = Coefficients(*(value.view(-1, 1, 1, 1) for value in found))
    return _Level(wide, t.float(), predictions[output])


_TABLES: dict[str, tuple[Any, int]] = {  # schedule -> betas, and the number of its first step
    "sd_scaled_linear": ("scaled_linear", 0),
    "ddpm_linear": ("linear", 0),
    "dimr": ("scaled_linear", 1),
}
_PATHS = {  # schedule -> path, and whether its time runs from data to noise
    "sit_linear": ("linear", False),
    "sit_gvp": ("gvp", False),
    "sit_vp": ("vp", False),
    "repa_linear": ("linear", True),
    "repa_cosine": ("gvp", True),
}


def _asked(network: Callable[..., Tensor], x: Tensor, t: Tensor, label: Tensor) -> dict[str, Tensor]:
    """In place of a process: what the network says of these states."""
    return {"loss": network(x, t, label)}


def _tiny(golden: Golden, prefix: str, hidden: int, num_classes: int) -> TinyLatentNet:
    network = TinyLatentNet(golden.config["channels"], hidden, num_classes)
    network.load_state_dict(_below(golden.group("param"), prefix))
    return network


def _num_classes(golden: Golden, prefix: str) -> int:
    return len(golden[f"param.{prefix}label.weight"]) - 1


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
