"""Recomputes the golden files of DiT: forwards, losses, ancestral and DDIM samples, bounds, tables, training, crops.

Where the reference evolves both halves of a guided batch, genlab carries the first: the other never reaches the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.convert import sit
from genlab.convert.golden_parts import FORWARD, TRAJECTORY, gradients, recorded, scale_of, trained, with_null
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.sit_reference import GUIDED_CHANNELS, guided_rows
from genlab.core.contracts import to_uint8
from genlab.data import transforms
from genlab.networks.dit import DiT
from genlab.nn.embed import sincos_2d, time_features
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from samplers import ddpm
from samplers.chain import Chain

EXACT, LOOSE = 1e-12, 5e-4
_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}  # the reference's name -> ours


def forward(golden: Golden) -> Iterator[Check]:
    """The forward at whole and fractional times, and the intermediates."""
    network = _network(golden)
    x, t, label = golden["in.x"], golden["in.t"], golden["in.y"]
    with recorded(network) as seen:
        yield Check("out.forward", network(x, t, label), FORWARD)
    seen["patch_tokens"] = network.x_embedder(x)
    yield Check("mid.t_freq", time_features(t), 1e-4)  # an ulp of a frequency moves the angle by 6e-5 at t = 999
    yield from (Check(f"mid.{name}", value, FORWARD) for name, value in seen.items())
    if "in.t_frac" in golden.tensors:
        yield Check("out.forward_t_frac", network(x, golden["in.t_frac"], label), FORWARD)


def forward_with_cfg(golden: Golden) -> Iterator[Check]:
    """Guided forwards, and the halves that they are made of."""
    network = _network(golden)
    z, t, label = golden["in.z"], golden["in.t"], golden["in.y"]
    labels = with_null(network, label)
    conditional, unconditional = network(z.repeat(2, 1, 1, 1), t.repeat(2), labels).chunk(2)
    yield Check("mid.cond", conditional, FORWARD)
    yield Check("mid.uncond", unconditional, FORWARD)
    for scale in golden.config["cfg_scales"]:
        yield Check(f"out.cfg_{scale}", guided_rows(network, z.repeat(2, 1, 1, 1), t.repeat(2), labels, scale), FORWARD)


def training_losses(golden: Golden) -> Iterator[Check]:
    """Per-sample losses, their parts and the gradients of their mean, for every diffusion of the file."""
    network = _network(golden)
    data, noise, label = golden["in.x_start"], golden["in.noise"], golden["in.y"]
    for run, options in golden.config["diffusions"].items():
        respacing = options.get("respacing", "")
        diffusion = _diffusion(golden, options, respacing)
        chain = diffusion.chain(respacing)
        step = golden["in.t"] % len(chain)
        link = chain.gather(step, data.dim())
        yield Check(f"mid.{run}.x_t", link.alpha * data + link.sigma * noise, FORWARD)
        losses = diffusion.loss_at(network, data, noise, step, label, respacing)
        parts = {"loss": losses["loss"], "mse": losses.get("mse", losses["loss"])}
        if "bound" in losses:
            parts["vb"] = diffusion.bound_weight * losses["bound"]
        for name, value in parts.items():
            yield Check(f"out.{run}.{name}", value, TRAJECTORY)
        tolerance = LOOSE if diffusion.objective == "kl" or diffusion.prediction == "data" else TRAJECTORY
        yield from gradients(golden, f"out.{run}.grad.", network.get_parameter, losses["loss"], tolerance)


@torch.no_grad()
def p_sample_loop(golden: Golden) -> Iterator[Check]:
    """Ancestral samples under given noise."""
    network, config, x = _network(golden), golden.config, golden["in.z"]
    diffusion = _diffusion(golden, config.get("diffusion", {}))
    chain = diffusion.chain(config.get("respacing") or "")
    states, guesses = list[Tensor](), list[Tensor]()

    def collect(progress: ddpm.Progress) -> None:
        states.append(progress.result)
        guesses.append(progress.data)

    denoise = diffusion.stepwise(network, golden["in.y"], _settings(config), chain)
    samples = ddpm.ancestral(denoise, x, chain, _draws(golden), collect)
    yield Check("mid.timestep_map", torch.tensor(chain.timesteps), 0)
    yield Check("mid.x_steps", _with_other_half(torch.stack(states), golden, "mid.x_steps"), TRAJECTORY)
    yield Check("mid.pred_xstart", torch.stack(guesses), LOOSE)
    yield Check("out.samples", samples, TRAJECTORY)
    pixels = to_uint8(samples[:, :3]).movedim(1, -1)
    yield Check("out.uint8", pixels, 1, absolute=True)  # a value on the edge may fall to either side


@torch.no_grad()
def ddim_sample_loop(golden: Golden) -> Iterator[Check]:
    """DDIM samples under given noise, and the way back."""
    network, label = _network(golden), golden["in.y"]
    for name, run in golden.config["runs"].items():
        diffusion = _diffusion(golden, {**golden.config.get("diffusion", {}), **run.get("diffusion", {})})
        chain = diffusion.chain(run.get("respacing") or "")
        denoise = diffusion.stepwise(network, label, _settings(run), chain)
        states = list[Tensor]()
        x = ddpm.ddim(denoise, golden["in.z"], chain, _draws(golden), run.get("eta", 0.0), _collect(states))
        yield Check(f"mid.{name}.timestep_map", torch.tensor(chain.timesteps), 0)
        steps = f"mid.{name}.x_steps"
        yield Check(steps, _with_other_half(torch.stack(states), golden, steps), TRAJECTORY)
        yield Check(f"out.{name}", x, TRAJECTORY)
    if "out.ddim_reverse" in golden.tensors:
        diffusion = _diffusion(golden, golden.config.get("diffusion", {}))
        settings = DiffusionSampling(respacing=golden.config.get("reverse_respacing") or str(diffusion.steps))
        yield Check("out.ddim_reverse", diffusion.encode(network, golden["in.x0"], label, settings), TRAJECTORY)


def calc_bpd(golden: Golden) -> Iterator[Check]:
    """The variational bound under given noise."""
    config = golden.config
    diffusion = _diffusion(golden, config.get("diffusion", {}))
    bound = diffusion.variational_bound(
        _network(golden),
        golden["in.x_start"],
        golden["in.y"],
        _draws(golden),
        config.get("respacing") or "",
        config.get("clip_denoised", True),
    )
    yield Check("out.total_bpd", bound.total, TRAJECTORY)
    # The reference adds terms of size 1 in float32 to a prior that is nearly 0.
    allowed = TRAJECTORY * golden["out.prior_bpd"].abs().max().item() + 5e-8
    yield Check("out.prior_bpd", bound.prior, allowed, absolute=True)
    yield Check("out.vb", bound.terms, TRAJECTORY)
    yield Check("out.xstart_mse", bound.data_error, TRAJECTORY)
    yield Check("out.mse", bound.noise_error, TRAJECTORY)


def schedules(golden: Golden) -> Iterator[Check]:
    """Tables in float64, the steps kept, and tables of positions."""
    chains = {
        name: _diffusion(golden, options).chain(respacing or "")
        for name, (respacing, options) in golden.config["schedules"].items()
    }
    for name in golden.group("out"):
        if name.startswith("pos_embed_"):
            width, side = map(int, name.split("_")[2:])
            yield Check(f"out.{name}", sincos_2d(width, (side, side)), 1e-7)  # stored in float32
            continue
        run, quantity = name.split(".")
        yield Check(f"out.{name}", _TABLES[quantity](chains[run]), EXACT)


def train_steps(golden: Golden) -> Iterator[Check]:
    """AdamW steps under given draws: losses, final parameters and their moving average."""
    network, diffusion = _network(golden), _diffusion(golden, golden.config.get("diffusion", {}))

    def loss(step: int, label: Tensor) -> Tensor:
        data, noise, t = golden["in.x"][step], golden["in.noise"][step], golden["in.t"][step]
        return diffusion.loss_at(network, data, noise, t, label)["loss"]

    yield from trained(golden, network, loss)


def center_crop(golden: Golden) -> Iterator[Check]:
    """ADM's centre crop of images of any shape."""
    for name, image in golden.group("in").items():
        for size in golden.config["sizes"]:
            square = transforms.center_crop(Image.fromarray(image.numpy()), size)
            yield Check(f"out.{name}_{size}", torch.from_numpy(np.array(square)), 0)


CASES: dict[str, Case] = {
    "forward": forward,
    "forward_with_cfg": forward_with_cfg,
    "training_losses": training_losses,
    "p_sample_loop": p_sample_loop,
    "ddim_sample_loop": ddim_sample_loop,
    "calc_bpd": calc_bpd,
    "schedules": schedules,
    "train_steps": train_steps,
    "center_crop": center_crop,
}
_TABLES: dict[str, Callable[[Chain], Tensor]] = {  # the reference's name -> float64 [N]
    "betas": lambda chain: chain.columns.beta,
    "alphas_cumprod": lambda chain: chain.columns.alpha.square(),
    "alphas_cumprod_prev": lambda chain: chain.columns.alpha_prev.square(),
    "alphas_cumprod_next": lambda chain: chain.columns.alpha_next.square(),
    "sqrt_alphas_cumprod": lambda chain: chain.columns.alpha,
    "sqrt_one_minus_alphas_cumprod": lambda chain: chain.columns.sigma,
    "log_one_minus_alphas_cumprod": lambda chain: chain.columns.sigma.square().log(),
    "posterior_variance": lambda chain: chain.columns.posterior_variance,
    "posterior_log_variance_clipped": lambda chain: chain.columns.log_posterior_variance,
    "posterior_mean_coef1": lambda chain: chain.columns.mean_data,
    "posterior_mean_coef2": lambda chain: chain.columns.mean_state,
    "sqrt_recip_alphas_cumprod": lambda chain: 1 / chain.columns.alpha,
    "sqrt_recipm1_alphas_cumprod": lambda chain: chain.columns.sigma / chain.columns.alpha,
    "timestep_map": lambda chain: torch.tensor(chain.timesteps),
}


def _network(golden: Golden) -> DiT:
    return sit.load(DiT(**sit.from_constructor(golden.config["model"])), golden.group("param"))


def _diffusion(golden: Golden, options: dict[str, Any], respacing: str = "") -> Diffusion:
    """The reference's arguments as ours; variances are learned where the network has outputs for them.

    The reference's rescaled loss divides the bound by 1000 and multiplies it by the steps.
    """
    learned = options.get("learn_sigma", golden.config.get("model", {}).get("learn_sigma", True))
    fixed = "fixed_small" if options.get("sigma_small") else "fixed_large"
    diffusion = Diffusion(
        steps=options.get("diffusion_steps", 1000),
        schedule=_SCHEDULES[options.get("noise_schedule", "linear")],  # type: ignore[arg-type]
        prediction="data" if options.get("predict_xstart") else "noise",
        variance="learned_range" if learned else fixed,  # type: ignore[arg-type]
        objective="kl" if options.get("use_kl") else "mse",
    )
    if options.get("rescale_learned_sigmas"):
        return replace(diffusion, bound_weight=len(diffusion.chain(respacing)) / 1000)
    return diffusion


def _settings(run: dict[str, Any]) -> DiffusionSampling:
    return DiffusionSampling(
        guidance=scale_of(run),
        guidance_channels=GUIDED_CHANNELS,
        clip_denoised=run.get("clip_denoised", False),
    )


def _draws(golden: Golden) -> Callable[[], Tensor]:
    """The file's noise [N, rows, ...], one step after the other, for the first half of a guided batch."""
    draws = iter(golden["in.noise"][:, : len(golden["in.y"])])
    return lambda: next(draws)


def _collect(states: list[Tensor]) -> ddpm.OnStep:
    return lambda progress: states.append(progress.result)


def _with_other_half(states: Tensor, golden: Golden, name: str) -> Tensor:
    """Our states [N, n, ...], with the other rows of the file's [N, 2n, ...] as they are there."""
    expected = golden.tensors.get(name, states)
    return torch.cat([states, expected[:, states.shape[1] :]], dim=1)
