"""Recomputes the golden files of REPA: losses with aligned features, and its samplers.

Time runs from data at 0 to noise at 1 there, so a velocity is minus genlab's at 1 - t; its "cosine" path is our "gvp".
States are float64, the network float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genlab.convert import sit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, scale_of
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.dit import DiT
from genlab.nn.projector import Projector
from genlab.processes.alignment import alignment
from genlab.processes.flow import Flow
from genlab.processes.guidance import Guidance, guide
from genlab.processes.paths import coefficients
from genlab.processes.predict import to_data, to_score
from samplers import ode, sde

_PATHS = {"linear": "linear", "cosine": "gvp"}  # REPA's name -> ours
_PROJECTOR = "projectors."


def losses(golden: Golden) -> Iterator[Check]:
    """The forward with its projected features; denoising and alignment losses and their gradients for every run."""
    model = Aligned(golden)
    x, label, draws = golden["in.x"], golden["in.y"], {"uniform": golden["in.u"], "lognormal": golden["in.normal"]}
    yield Check("out.forward", model.network(x, golden["in.u"], label), FORWARD)
    for index, projected in enumerate(model.projected()):
        yield Check(f"mid.proj{index}", projected, FORWARD)
    targets = [golden[f"in.z{index}"] for index in range(len(model.projectors))]
    for run in sorted({".".join(name.split(".")[:2]) for name in golden.group("out") if name.count(".") > 1}):
        path, distribution = run.split(".")
        t = _time(path, distribution, draws[distribution])
        flow = Flow(path=_PATHS[path])  # type: ignore[arg-type]
        denoising = flow.loss_at(model.reversed, x, golden["in.noise"], 1 - t, label)
        aligned = alignment(model.projected(), targets).mean().view(1)
        total = denoising.mean() + golden.config.get("proj_coeff", 0.5) * aligned
        yield Check(f"out.{run}.denoising", denoising, TRAJECTORY)
        yield Check(f"out.{run}.proj", aligned, TRAJECTORY)
        yield Check(f"out.{run}.total", total, TRAJECTORY)
        yield from gradients(golden, f"out.{run}.grad.", model.parameter, total)


@torch.no_grad()
def samplers(golden: Golden) -> Iterator[Check]:
    """Samples of the probability flow and of the SDE, guided in an interval of times."""
    network = Aligned(golden).network
    for run in golden.config["runs"]:
        sample = _sde if run["mode"] == "sde" else _ode
        yield Check(f"out.{run['name']}", sample(network, golden, run), TRAJECTORY)


CASES: dict[str, Case] = {"losses": losses, "samplers": samplers}


class Aligned:
    """A DiT with the heads that project the tokens after block `encoder_depth` into the spaces of encoders."""

    def __init__(self, golden: Golden):
        model, state = golden.config["model"], golden.group("param")
        arguments = sit.from_constructor({"learn_sigma": False, **model})
        own = {key: value for key, value in state.items() if not key.startswith(_PROJECTOR)}
        self.network = sit.load(DiT(**arguments), own)
        width, hidden = arguments["width"], model.get("projector_dim", 2048)
        self.projectors = nn.ModuleList(Projector(width, hidden, outputs) for outputs in model.get("z_dims", [768]))
        heads = {key.removeprefix(_PROJECTOR): value for key, value in state.items() if key.startswith(_PROJECTOR)}
        self.projectors.load_state_dict(heads)
        self._tokens = torch.empty(0)
        block = self.network.blocks[model.get("encoder_depth", 8) - 1]
        block.register_forward_hook(lambda _module, _args, out: setattr(self, "_tokens", out))

    def projected(self) -> list[Tensor]:
        """What each head makes of the tokens of the last forward."""
        return [head(self._tokens) for head in self.projectors]

    def reversed(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The network in genlab's direction of time."""
        return -self.network(x, 1 - t, label)

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of an official name."""
        if name.startswith(_PROJECTOR):
            return self.projectors.get_parameter(name.removeprefix(_PROJECTOR))
        return self.network.get_parameter(name)


def _time(path: str, distribution: str, draw: Tensor) -> Tensor:
    """Training times: uniform, or from log-normal noise levels."""
    if distribution == "uniform":
        return draw
    level = draw.exp()
    return level / (1 + level) if path == "linear" else torch.atan(level) * (2 / torch.pi)


def _velocity(network: DiT, golden: Golden, run: dict[str, Any]) -> Callable[[Tensor, float, float], Tensor]:
    """(x, t, at) -> the velocity in REPA's time, guided if `at` lies in the interval."""
    label, interval = golden["in.y"], (run.get("low", 0.0), run.get("high", 1.0))
    plain = guide(network, label, Guidance())
    guided = guide(network, label, Guidance(max(scale_of(run), 1.0)))

    def velocity(x: Tensor, t: float, at: float) -> Tensor:
        inside = interval[0] <= at <= interval[1]
        return (guided if inside else plain)(x.float(), t).double()

    return velocity


def _ode(network: DiT, golden: Golden, run: dict[str, Any]) -> Tensor:
    """Euler or Heun steps, of which the last is always Euler's; the interval is tested where a step begins."""
    velocity = _velocity(network, golden, run)
    grid = torch.linspace(1, 0, run["num_steps"] + 1, dtype=torch.float64)
    x = golden["in.z"].double()
    for start, end in pairwise(grid.tolist()):
        method = "heun" if run.get("heun") and end > 0 else "euler"
        step = torch.tensor([start, end], dtype=torch.float64)
        x = ode.integrate(lambda x, t: velocity(x, t, start), x, step, method)  # noqa: B023 (called at once)
    return x


def _sde(network: DiT, golden: Golden, run: dict[str, Any]) -> Tensor:
    """Euler-Maruyama with the diffusion coefficient t, then a last step without noise; in genlab's time."""
    velocity, path = _velocity(network, golden, run), _PATHS[run.get("path", "linear")]
    grid = 1 - torch.linspace(1, 0.04, run["num_steps"], dtype=torch.float64)

    def field(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        v = -velocity(x, 1 - t, 1 - t)
        return v, to_score("velocity", v, x, coefficients(path, t, x))  # type: ignore[arg-type]

    draws = iter(golden["in.noise"].double())
    x = sde.euler_maruyama(field, lambda t: 1 - t, golden["in.z"].double(), grid, lambda: next(draws))
    t = grid[-1].item()
    v, score = field(x, t)
    data = to_data("velocity", v, x, coefficients(path, t, x))  # type: ignore[arg-type]
    return sde.finish("mean", x, v, score, data, 1 - t, 1 - t)
