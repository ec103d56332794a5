"""Recomputes the golden files of EDM and EDM2: networks, blocks, losses, samples, averages of weights and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.convert import edm
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.errors import CheckpointError
from genlab.networks.edm2 import Edm2
from genlab.networks.edm_blocks import Block, BlockStyle
from genlab.networks.edm_unet import EdmUNet
from genlab.nn.resample import Direction
from genlab.processes.edm import Edm
from genlab.processes.edm_sampling import EdmSampling
from genlab.training import power_ema
from genlab.training.optimizers import inverse_root
from samplers import edm as sampler
from samplers.grids import karras

TIGHT, GRADIENT, SAMPLE, DOUBLE = 1e-5, 1e-4, 1e-5, 1e-8


@torch.no_grad()
def unet(golden: Golden) -> Iterator[Check]:
    """The denoiser for several labels, the bare network, and the outputs of its layers."""
    network, process = _network(golden.config, _parameters(golden)), _process(golden.config)
    x, sigma = golden["in.x"], golden["in.sigma"]
    augment = golden.tensors.get("in.augment_labels")
    none = torch.zeros(len(x), network.num_classes)
    labels = {"D": golden.tensors.get("in.class_labels", none), "D_null_label": none, "D_labels_none": none}
    for name, rows in labels.items():
        if f"out.{name}" in golden.tensors:
            yield Check(f"out.{name}", process.denoise(network, x, sigma, rows, augment=augment)[0], TIGHT)
    c = process.scalings(sigma)
    scaled = c.into[:, None, None, None] * x
    with _recorded(network) as seen:
        out = network(scaled, c.t, labels["D"], augment)
    yield from _layers(golden, {"F": out, **seen})
    if "out.bottleneck" in golden.tensors:
        yield Check("out.bottleneck", network.encode(scaled, network.embed(c.t, labels["D"], augment))[0], TIGHT)


@torch.no_grad()
def unet_blocks(golden: Golden) -> Iterator[Check]:
    """Blocks on their own."""
    for name, options in golden.config["blocks"].items():
        outputs = options["out_channels"]
        heads = options.get("num_heads") or outputs // options.get("channels_per_head", 64)
        style = BlockStyle(
            options.get("adaptive_scale", True),
            options.get("eps", 1e-5),
            options.get("skip_scale", 1.0),
            tuple(float(tap) for tap in options.get("resample_filter", (1, 1))),
            options.get("resample_proj", False),
        )
        resample: Direction | None = "up" if options.get("up") else "down" if options.get("down") else None
        heads = heads if options.get("attention") else 0
        block = Block(options["in_channels"], outputs, options["emb_channels"], heads, resample, style)
        edm.put(block, _below(golden.group("param"), f"{name}."))
        yield Check(f"out.{name}", block(golden["in.x"], golden["in.emb"]), TIGHT)


def loss(golden: Golden) -> Iterator[Check]:
    """Weighted errors, noise levels and gradients of their sum over the batch."""
    network, process = _network(golden.config, _parameters(golden)).train(), _process(golden.config)
    sigma = (process.log_mean + process.log_std * golden["in.rnd_normal"]).exp()
    label = golden.tensors.get("in.class_labels", torch.zeros(len(sigma), 0))
    errors, _ = process.errors_at(network, golden["in.images"], golden["in.noise"], sigma.flatten(), label)
    total = errors.sum() / len(errors)
    total.backward()
    yield Check("out.sigma", sigma, TIGHT)
    yield Check("out.loss", errors, TIGHT)
    yield Check("out.loss_scalar", total, TIGHT)
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    yield Check("out.grad_norm", torch.stack([grad.norm() for grad in found.values()]).norm(), GRADIENT)
    yield from _gradients(golden, edm.official(network, found))


@torch.no_grad()
def heun_sampler(golden: Golden) -> Iterator[Check]:
    """Samples in double precision under given noise, with what the network was asked."""
    network, process = _network(golden.config, _parameters(golden)), _process(golden.config)
    label = golden.tensors.get("in.class_labels", torch.zeros(len(golden["in.latents"]), 0))
    for name, run in golden.config["sampler"].items():
        sigmas, inputs = list[float](), list[Tensor]()

        def denoise(x: Tensor, sigma: float, start: float) -> Tensor:
            sigmas.append(sigma)  # noqa: B023 (called at once)
            inputs.append(x)  # noqa: B023
            return process.denoise(network, x, torch.full((len(x),), sigma, dtype=x.dtype), label)[0]

        result = _sample(denoise, golden["in.latents"].double(), run, golden["in.step_noise"], every_step=True)
        yield Check(f"mid.{name}.call_sigma", torch.tensor(sigmas, dtype=torch.float64), TIGHT)
        if (kept := f"mid.{name}.call_x_first3") in golden.tensors:
            yield Check(kept, torch.stack(inputs[: len(golden[kept])]), TIGHT)
        yield Check(f"out.{name}", result, SAMPLE)


def edm2_net(golden: Golden) -> Iterator[Check]:
    """The network, its uncertainty, a training step's loss, and samples guided by a second network."""
    parts = golden.config
    state = golden.group("param")
    network = _network(parts["net"], _below(state, "net."))
    assert isinstance(network, Edm2)
    process = _process({**parts["net"], "loss": parts.get("loss", {})})
    x, sigma = golden["in.x"], golden["in.sigma"]
    none = torch.zeros(len(x), network.num_classes)
    label = golden.tensors.get("in.class_labels", none)
    with torch.no_grad(), _recorded(network) as seen:
        expected, log_variance = process.denoise(network, x, sigma, label, log_variance=True)
        c = process.scalings(sigma)
        yield from _layers(golden, {"F": (expected - _wide(c.skip) * x) / _wide(c.out), **seen})
        assert log_variance is not None
        yield Check("out.D", expected, TIGHT)
        yield Check("out.logvar", log_variance[:, None, None, None], TIGHT)
        if "out.D_labels_none" in golden.tensors:
            yield Check("out.D_labels_none", process.denoise(network, x, sigma, none)[0], TIGHT)
    if "sampler" in parts:
        weaker = _network(parts["gnet"], _below(state, "gnet.")) if "gnet" in parts else None
        yield from _guided_samples(golden, process, network, weaker)
    yield from _edm2_loss(golden, process, network.train())


def _edm2_loss(golden: Golden, process: Edm, network: Edm2) -> Iterator[Check]:
    network.normalise_weights()
    sigma = (process.log_mean + process.log_std * golden["in.rnd_normal"]).exp()
    label = golden.tensors.get("in.loss_labels", torch.zeros(len(sigma), 0))
    trained = Edm(process.sigma_data, process.log_mean, process.log_std, uncertainty=True)
    errors, u = trained.errors_at(network, golden["in.images"], golden["in.noise"], sigma.flatten(), label)
    assert u is not None
    losses = errors / _wide(u.exp()) + _wide(u)
    total = losses.sum() / len(losses)
    total.backward()
    yield Check("out.loss", losses, TIGHT)
    yield Check("out.loss_scalar", total, TIGHT)
    stored = edm.official(network, network.state_dict())
    for name in golden.group("out"):
        if name.startswith("weight_after_train_forward."):
            yield Check(f"out.{name}", stored[name.removeprefix("weight_after_train_forward.")], TIGHT)
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    yield from _gradients(golden, edm.official(network, found))


@torch.no_grad()
def _guided_samples(golden: Golden, process: Edm, network: Edm2, weaker: EdmUNet | Edm2 | None) -> Iterator[Check]:
    noise = golden["in.latents"]
    label = golden.tensors.get("in.sample_labels", torch.zeros(len(noise), 0))
    for name, run in golden.config["sampler"].items():
        denoise = process.denoiser(network, label, EdmSampling(guidance=run.get("guidance", 1)), weaker)
        run = {"num_steps": 32, **run}
        yield Check(
            f"out.sample.{name}", _sample(denoise, noise, run, golden["in.step_noise"], every_step=False), SAMPLE
        )


def _rate(config: dict[str, Any], seen: float) -> float:
    """EDM2's learning rate as a share of its peak; 0 for a length switches that part off."""
    constant, rise = config["ref_batches"] * config["lr_batch"], config["rampup_Mimg"] * 1e6
    return (inverse_root(seen, constant) if constant else 1) * (min(seen / rise, 1) if rise else 1)


@torch.no_grad()
def phema(golden: Golden) -> Iterator[Check]:
    """Averages of power functions: widths, decays, profiles, combinations and tracks; and the learning rate."""
    config = golden.config
    read = {name: value.double().numpy() for name, value in golden.group("in").items()}
    stds, seen, batch = read["stds"], read["cur_nimg"], config["batch"]
    decays = np.array([[power_ema.decay(std, t, batch) for t in seen] for std in stds])
    response = golden["out.response"]
    profiles = [power_ema.profile(std, np.arange(len(response)), config.get("t_end", 100)) for std in stds]
    ends = np.full(len(read["out_std"]), config["out_ofs"])
    results: dict[str, Any] = {
        "std_to_exp": power_ema.exponent(stds),
        "exp_to_std": power_ema.width(power_ema.exponent(stds)),
        "beta": decays,
        "response": np.stack(profiles, axis=1),
        "posthoc_coefs": power_ema.combination(read["in_ofs"], read["in_std"], ends, read["out_std"]),
        "lr": np.array([config["ref_lr"] * _rate(config, seen) for seen in read["lr_nimg"]]),
    }
    for name, value in results.items():
        yield Check(f"out.{name}", torch.as_tensor(value), DOUBLE)
    stds, half_life = config.get("track_stds", (0.05, 0.10)), config["halflife_Mimg"] * 1e6
    tracks: dict[str, list[Callable[[float], float]]] = {
        "power_ema_track": [partial(power_ema.decay, std, batch=batch) for std in stds],
        "traditional_ema_track": [partial(power_ema.half_life_decay, half_life, batch=batch, rampup=config["rampup"])],
    }
    for name, decay_of in tracks.items():
        averages = torch.full((len(decay_of),), config["init_weight"], dtype=torch.float32)
        rows = list[Tensor]()
        for step, weight in enumerate(golden["in.weights"], start=1):
            keep = torch.tensor([decay(step * batch) for decay in decay_of], dtype=torch.float64)
            averages = torch.lerp(weight, averages, keep.float())
            rows.append(averages)
        yield Check(f"out.{name}", torch.stack(rows).view_as(golden[f"out.{name}"]), TIGHT)


def tables(golden: Golden) -> Iterator[Check]:
    """Scalings, weights and noise levels."""
    sigma = golden["in.sigma"]
    process = Edm(sigma_data=golden.config["sigma_data"])
    c = process.scalings(sigma)
    for name, value in {"c_skip": c.skip, "c_out": c.out, "c_in": c.into, "c_noise": c.t}.items():
        yield Check(f"out.{name}", value, DOUBLE)
    for name in ("loss_weight", "dmd2_fake_weight"):  # DMD2's critic is trained with EDM's weight
        if f"out.{name}" in golden.tensors:
            yield Check(f"out.{name}", process.weight(sigma), DOUBLE)
    if "out.karras_sigmas_1000" in golden.tensors:
        yield Check("out.karras_sigmas_1000", karras(80, 0.002, 1000)[:-1].flip(0).float(), TIGHT)
    yield Check("out.sampler_t_steps", karras(80, 0.002, golden.config["num_steps"]), DOUBLE)


CASES: dict[str, Case] = {
    "adm_unet": unet,
    "ddpmpp_unet": unet,
    "ncsnpp_unet": unet,
    "unet_blocks": unet_blocks,
    "edm_loss": loss,
    "heun_sampler": heun_sampler,
    "edm2_net": edm2_net,
    "phema": phema,
    "tables": tables,
}


def _network(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    return edm.put(edm.build(edm.from_constructor(model)), state)


def _process(config: Mapping[str, Any]) -> Edm:
    options = config.get("loss", {})
    sigma_data = config.get("sigma_data", options.get("sigma_data", 0.5))
    return Edm(sigma_data, options.get("P_mean", -1.2), options.get("P_std", 1.2))


def _parameters(golden: Golden) -> dict[str, Tensor]:
    """The file's own, or those of the file beside it that it names. Raises CheckpointError."""
    if state := golden.group("param"):
        return state
    if not (source := golden.config.get("params_from")):
        raise CheckpointError(f"{golden.path}: holds no parameters and names no file with any")
    return Golden.load(golden.path.with_name(f"{source}.safetensors")).group("param")


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _sample(denoise: sampler.Denoise, noise: Tensor, run: Mapping[str, Any], draws: Tensor, every_step: bool) -> Tensor:
    """A run of the reference, which has noise for each step, or for each that churns."""
    levels = karras(run.get("sigma_max", 80), run.get("sigma_min", 0.002), run.get("num_steps", 18), run.get("rho", 7))
    churn = sampler.Churn(
        run.get("S_churn", 0), run.get("S_min", 0), float(run.get("S_max", "inf")), run.get("S_noise", 1)
    )
    churned = [i for i, (t, _) in enumerate(pairwise(levels.tolist())) if churn.lowest <= t <= churn.highest]
    order = iter(churned if every_step else range(len(draws)))
    return sampler.heun(denoise, noise * levels[0], levels, churn, lambda: draws[next(order)])


def _gradients(golden: Golden, found: Mapping[str, Tensor]) -> Iterator[Check]:
    for name, expected in golden.group("out").items():
        if name.startswith("grad."):  # what is multiplied by zero has none
            yield Check(f"out.{name}", found.get(name.removeprefix("grad."), torch.zeros_like(expected)), GRADIENT)


@contextmanager
def _recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, the outputs of all layers in the network's first forward, by the golden files' names."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
            seen.setdefault(name, out)  # what a hook returns would replace the output

        return hook

    named = [
        (f"{side}_{name}", layer)
        for side in ("enc", "dec")
        for name, layer in network.get_submodule(side).named_children()
    ]
    named += [(name, layer) for name, layer in network.named_children() if name in ("map_noise", "emb_noise")]
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in named]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _layers(golden: Golden, seen: Mapping[str, Tensor]) -> Iterator[Check]:
    """Intermediates that the file has, of as many samples as it has."""
    for name, expected in golden.group("mid").items():
        if name in seen:
            yield Check(f"mid.{name}", seen[name][: len(expected)], TIGHT)
