"""Recomputes the golden files of FiTv2 and FiT: forwards on any grid, rotary tables, losses, and samples.

The reference works on rows of tokens. Here they become states [B, features, N], so that genlab's processes treat the
features of a token as they treat channels: guiding three latent channels is guiding the first 3 p^2 features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from genlab.convert import fit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, scale_of, sde_options, sde_steps
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import torchdiffeq
from genlab.networks.fit import FiT
from genlab.nn.channel_patches import from_patches
from genlab.nn.grid_rope import GridRope, length_magnitude, yarn_magnitude
from genlab.processes import flow_sampling
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.guidance import combine
from genlab.processes.paths import interpolate, linear
from samplers import ddpm, ode

_METHODS = {"heun2": "heun"}  # torchdiffeq's name -> ours; others agree, or are only torchdiffeq's
_SDE_METHODS: dict[str, Any] = {"Euler": "euler_maruyama", "Heun": "sde_heun"}
_SCALES = {"cfg_const": (1.5, 0.0), "cfg_pow": (4.0, 1.8)}  # output -> guidance scale and power


class OnRows:
    """A FiT as a denoiser of states [B, features, N] on a given grid, for any multiple of its rows."""

    def __init__(self, network: FiT, grid: Tensor, mask: Tensor | None = None, size: Tensor | None = None):
        self.network, self.places, self.num_classes = network, (grid, mask, size), network.num_classes

    @property
    def null_label(self) -> int:
        """The network's."""
        return self.network.null_label

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        places = [None if p is None else p.repeat(len(x) // len(p), *[1] * (p.dim() - 1)) for p in self.places]
        return self.network(x.mT, t, label, *places).mT


def forward_v2(golden: Golden) -> Iterator[Check]:
    """Full, padded and packed rows, guidance, un-patchified latents and shifted times."""
    network = _network(golden)
    with torch.no_grad():
        for name in golden.group("out"):
            run, _, what = name.partition(".")
            if run in _SCALES:
                value = _guided(golden, network, *_SCALES[run])
            elif what == "unpatchified":
                value = from_patches(
                    _forward(golden, network, run), _full_grid(golden[f"in.{run}.grid"]), network.patch
                )
            elif what.startswith("y_timeshift"):
                shifted = _network(golden, time_shift=float(what.removeprefix("y_timeshift")))
                value = _forward(golden, shifted, run)
            else:
                value = _forward(golden, network, run)
                if run == "packed":  # the reference multiplies the k-th image of a row by k
                    value = value * golden["in.packed.mask"].unsqueeze(2)
            yield Check(f"out.{name}", value, FORWARD)
        for run in sorted({name.split(".")[0] for name in golden.group("mid")}):
            yield from _streams(golden, network, run)


def rope_modes_forward(golden: Golden) -> Iterator[Check]:
    """Every extrapolation mode, coupled and decoupled, and its frequencies; per sample with `online_rope`."""
    for run in sorted({name.rsplit(".", 1)[0] for name in golden.group("out")}):
        mode, coupling = run.split(".")
        network = _network(golden, extrapolation=mode, decoupled=coupling == "decoupled")
        with torch.no_grad():
            yield Check(f"out.{run}.y", _forward(golden, network), FORWARD)
        if f"mid.{run}.freqs_h" in golden.tensors:
            by_row, by_column = network.rope.frequencies(torch.tensor(network.rope.target))
            yield Check(f"mid.{run}.freqs_h", by_row, FORWARD)
            yield Check(f"mid.{run}.freqs_w", by_column, FORWARD)


def rope_tables(golden: Golden) -> Iterator[Check]:
    """Frequencies, cosines and sines at some places, and magnitudes: `hdD.hRwCoL.MODE.COUPLING.WHAT`."""
    for name in golden.group("out"):
        head, setting, mode, coupling, what = name.split(".")
        height, width, trained = (int(number) for number in setting[1:].replace("w", " ").replace("o", " ").split())
        target = (height, width)
        rope = GridRope(int(head[2:]), mode, coupling == "decoupled", trained, target)  # type: ignore[arg-type]
        by_row, by_column = rope.frequencies(torch.tensor(target))
        turn = rope.rotation(golden[f"in.{setting}.grid"])
        values = {
            "freqs_h": by_row,
            "freqs_w": by_column,
            "cos": turn.cos[:, 0].repeat_interleave(2, dim=-1),
            "sin": turn.sin[:, 0].repeat_interleave(2, dim=-1),
            "mscale": torch.tensor(yarn_magnitude(target, trained)),
            "proportion1": torch.tensor(length_magnitude(2 * max(target), trained)),
            "proportion2": torch.tensor(length_magnitude(2 * target[0] * target[1], trained**2)),
        }
        yield Check(f"out.{name}", values[what], FORWARD)


def loss_v2(golden: Golden) -> Iterator[Check]:
    """The flow's loss over valid tokens and its gradients."""
    network, valid = _network(golden), golden["in.mask"] != 0  # [B,N]
    lognormal = golden.config.get("transport", {}).get("snr_type", "lognorm") == "lognorm"
    t = golden["in.u"].sigmoid() if lognormal else golden["in.u"]
    dropped = golden["in.drop_u"] < golden.config.get("class_dropout_prob", 0.1)
    label = torch.where(dropped, network.num_classes, golden["in.y"])
    x1, x0 = golden["in.x1"].mT, golden["in.x0"].mT  # 2 x [B,features,N]
    xt = interpolate(linear(t.view(-1, 1, 1)), x1, x0)
    model = OnRows(network, *(golden[f"in.{name}"] for name in ("grid", "mask", "size")))
    loss = _over_valid(Flow().loss_at(model, x1 * valid[:, None], x0 * valid[:, None], t, label), valid)
    yield Check("mid.t", t, FORWARD)
    yield Check("mid.xt", xt.mT, FORWARD)
    yield Check("mid.target", (x1 - x0).mT, FORWARD)
    yield Check("mid.pred", model(xt, t, label).mT, FORWARD)
    yield Check("out.loss", loss, FORWARD)
    yield Check("out.loss_mean", loss.mean(), FORWARD)
    yield from gradients(golden, "out.grad.", network.get_parameter, loss)


@torch.no_grad()
def sample_v2(golden: Golden) -> Iterator[Check]:
    """ODE and SDE samples, as tokens and as latents."""
    network = _network(golden)
    shape = (golden.config["h"], golden.config["w"])
    for name, run in golden.config["runs"].items():
        sampled = _stochastic if run["kind"] == "sde" else _deterministic
        tokens = sampled(golden, network, name, run).mT  # [n,N,features]
        tolerance = 1e-4 if run["method"] == "dopri5" else FORWARD
        yield Check(f"out.{name}.tokens", tokens, tolerance)
        yield Check(f"out.{name}.latent", from_patches(tokens, shape, network.patch), tolerance)


def fit_v1(golden: Golden) -> Iterator[Check]:
    """FiT's forward with times as they are and as the released code clamps them, its loss, and ancestral samples."""
    network = _network(golden)
    model = OnRows(network, *(golden[f"in.{name}"] for name in ("grid", "mask", "size")))
    t, label, valid = golden["in.t"], golden["in.y"], golden["in.mask"] != 0
    learned = golden.config.get("learn_sigma", True)
    diffusion = Diffusion(variance="learned_range" if learned else "fixed_large")
    data, noise = golden["in.loss.x_start"], golden["in.loss.noise"]
    with torch.no_grad():
        yield Check("out.y_raw_t", model(golden["in.x"], t, label), FORWARD)
        yield Check("out.y_shipped_clamped_t", model(golden["in.x"], t.clamp(max=1), label), FORWARD)
        losses = diffusion.loss_at(model, data, noise * valid[:, None], t, label)
        mse = _over_valid(losses.get("mse", losses["loss"]), valid)
        bound = torch.zeros_like(mse)
        if learned:  # of all tokens, padding too
            bound = _over_valid(diffusion.loss_at(model, data, noise, t, label)["bound"], valid)
    yield Check("out.loss.mse", mse, FORWARD)
    yield Check("out.loss.vb", bound, FORWARD)
    yield Check("out.loss.loss", mse + bound, FORWARD)
    yield from _ancestral(golden, network, diffusion)


@torch.no_grad()
def _ancestral(golden: Golden, network: FiT, diffusion: Diffusion) -> Iterator[Check]:
    sample = golden.config["sample"]
    z, label = golden["in.sample.z"], golden["in.sample.y"]
    column, row = torch.meshgrid(torch.arange(sample["w"]), torch.arange(sample["h"]), indexing="xy")
    model = OnRows(network, torch.stack([column.flatten(), row.flatten()])[None], size=_size(sample))
    chain = diffusion.chain(str(sample["steps"]))
    settings = DiffusionSampling(guidance=scale_of(sample), guidance_channels=_guided_features(network))
    denoise = diffusion.stepwise(model, label, settings, chain)  # type: ignore[arg-type]
    draws = iter(golden["in.sample.noise"][:, : len(z)])
    tokens = ddpm.ancestral(denoise, z, chain, lambda: next(draws))  # [n,features,N]
    yield Check("out.sample.tokens", tokens, TRAJECTORY)
    yield Check("out.sample.latent", from_patches(tokens.mT, (sample["h"], sample["w"]), network.patch), TRAJECTORY)


CASES: dict[str, Case] = {
    "forward_v2": forward_v2,
    "forward_variants": forward_v2,
    "rope_modes_forward": rope_modes_forward,
    "forward_v2_online_rope": rope_modes_forward,
    "rope_tables": rope_tables,
    "loss_v2": loss_v2,
    "sample_v2": sample_v2,
    "fit_v1": fit_v1,
}


def _network(golden: Golden, **changes: Any) -> FiT:
    return fit.load(FiT(**{**fit.from_constructor(golden.config), **changes}), golden.group("param")).eval()


def _forward(golden: Golden, network: FiT, run: str = "") -> Tensor:
    x, t, y, *places = (
        golden[f"in.{run}{'.' if run else ''}{name}"] for name in ("x", "t", "y", "grid", "mask", "size")
    )
    return network(x, t, y, *places)


def _streams(golden: Golden, network: FiT, run: str) -> Iterator[Check]:
    """The residual stream after each block."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _module, _args, out: seen.append(out)) for block in network.blocks]
    _forward(golden, network, run)
    for hook in hooks:
        hook.remove()
    yield from (Check(f"mid.{run}.block{number}", stream, FORWARD) for number, stream in enumerate(seen))


def _guided_features(network: FiT) -> int:
    return 3 * network.patch**2


def _scale(scale: float, power: float, t: Tensor) -> Tensor:
    """The guidance scale [n,1,1] at times t [n]: full at noise, 1 at data, if there is a power."""
    if not power:
        return torch.full_like(t, scale).view(-1, 1, 1)
    return (1 + (scale - 1) * 0.5 * (1 - torch.cos(math.pi * (1 - t) ** power))).view(-1, 1, 1)


def _guided(golden: Golden, network: FiT, scale: float, power: float) -> Tensor:
    """The guided forward of 2n rows, which reads the first n; features that are not guided stay each half's own."""
    x, t, label = (golden[f"in.cfg.{name}"] for name in ("x", "t", "y"))
    first = x[: len(x) // 2].mT
    model = OnRows(network, *(golden[f"in.square.{name}"] for name in ("grid", "mask", "size")))
    out = model(torch.cat([first, first]), t, label)  # [2n,features,N]
    conditional, unconditional = out.chunk(2)
    count = _guided_features(network)
    guided = combine(conditional, unconditional, _scale(scale, power, t[: len(first)]), None)[:, :count]
    return torch.cat([torch.cat([guided, guided]), out[:, count:]], dim=1).mT


def _velocity(golden: Golden, network: FiT, run: dict[str, Any]) -> flow_sampling.Velocity:
    """The guided velocity of n rows."""
    model, label = OnRows(network, golden["in.grid"][:1], size=_size(golden.config)), golden["in.y"]
    settings = FlowSampling(
        guidance=scale_of(run),
        guidance_channels=_guided_features(network),
        guidance_power=run.get("scale_pow") or None,
    )
    return Flow().denoiser(model, label, settings)  # type: ignore[arg-type]


def _deterministic(golden: Golden, network: FiT, name: str, run: dict[str, Any]) -> Tensor:
    x, velocity = golden["in.z"].mT, _velocity(golden, network, run)
    method, grid = _METHODS.get(run["method"], run["method"]), torch.linspace(0, 1, run["num_steps"])
    if method in ode.TABLEAUS:
        return ode.integrate(velocity, x, grid, method)
    evaluations = golden.tensors.get(f"mid.{name}.t_eval")

    def clamped(x: Tensor, t: float) -> Tensor:  # the adaptive solver runs past the end, and the released code clamps
        return velocity(x, min(t, 1.0))

    return torchdiffeq(clamped, x, grid, method, run.get("rtol", 1e-3), run.get("atol", 1e-6), evaluations)[-1]


def _stochastic(golden: Golden, network: FiT, name: str, run: dict[str, Any]) -> Tensor:
    x = golden["in.z"].mT
    draws = iter(golden[f"in.{name}.noise"][:, : len(x)].mT)
    options = sde_options(run)
    steps, begin = sde_steps(run, options)
    settings = FlowSampling(sampler=_SDE_METHODS[run["method"]], steps=steps, **options)
    stream: Any = SimpleNamespace(normal=lambda *shape: next(draws))  # in place of a SampleRng
    velocity = _velocity(golden, network, run)
    return flow_sampling.stochastic("linear", velocity, x, (0.0, 1.0), settings, stream, None, begin)


def _size(of: dict[str, Any]) -> Tensor:
    """The rows and columns of the one image in each row of tokens, [1,1,2]."""
    return torch.tensor([[[of["h"], of["w"]]]])


def _over_valid(mean: Tensor, valid: Tensor) -> Tensor:
    """A mean over all tokens [B], nothing of it from padding, as the mean over valid ones."""
    return mean * valid.shape[1] / valid.sum(1)


def _full_grid(grid: Tensor) -> tuple[int, int]:
    """(rows, columns) of a grid without padding."""
    column, row = (int(axis) for axis in grid[0].amax(1) + 1)
    return row, column
