"""Golden files of the losses of tokenizer training: perceptual losses, and those of VQGAN and LlamaGen."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from genlab.convert.golden_images import recipe_weights
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.public_weights import FoundWeights
from genlab.tokenization.losses import ms_ssim as similarity
from genlab.tokenization.losses.adversarial import (
    AdversarialLoss,
    AdversarialSettings,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from genlab.tokenization.losses.discriminators import PatchDiscriminator, PatchGAN, StyleGAN
from genlab.tokenization.losses.dists import Dists, distance, l2_pool
from genlab.tokenization.losses.perceptual import Lpips

TOLERANCE, GRADIENT = 1e-5, 1e-4
LIBRARY = 2e-5
"""Against libraries: pytorch-msssim keeps its window in float32."""


def ms_ssim(golden: Golden) -> Iterator[Check]:
    """Levels, values and the gradient in float64, beside other libraries' values."""
    weights = golden.config["weights"]
    x, y = _pixels(golden)
    yield Check("mid.levels", similarity.level_similarities(x, y, len(weights)), 1e-9)
    values = similarity.ms_ssim(x, y, weights, eps=0.0)
    yield Check("out.spec.per_channel", values, 1e-9)
    yield Check("out.spec.per_image", values.mean(1), 1e-9)
    loss = 1.0 - values.mean()
    yield Check("out.loss", loss, 1e-9)
    yield Check("out.loss_grad_x0", torch.autograd.grad(loss, x)[0][:1], 1e-9)
    halves = 2 ** (len(weights) - 1)
    odd = "the libraries pad odd sizes" if x.shape[2] % halves or x.shape[3] % halves else ""
    first = similarity.level_similarities(x, y, 1)[0]  # the SSIM of the images themselves
    libraries = {
        "piq.multi_scale_ssim": (values.mean(1), odd),
        "pytorch_msssim.ms_ssim": (values.mean(1), odd),
        "pytorch_msssim.ms_ssim_255": (values.mean(1), odd),
        "pytorch_msssim.ssim": (first.mean(1), ""),
        "pytorch_msssim.level0.ssim": (first, ""),
        "pytorch_msssim.level0.cs": (similarity.level_similarities(x, y, 2)[0], ""),
        "torchmetrics.relu": (x, "torchmetrics averages channels before the product"),
        "torchmetrics.simple": (x, "torchmetrics averages channels before the product"),
    }
    for name in golden.group("out").keys() & libraries.keys():
        value, skipped = libraries[name]
        yield Check(f"out.{name}", value, LIBRARY, skipped=skipped)


def ms_ssim_clamped(golden: Golden) -> Iterator[Check]:
    """Anti-correlated structure: clamped levels pass no gradient, the others do."""
    weights = golden.config["weights"]
    x, y = _pixels(golden)
    eps = golden.config["eps"]
    yield Check("mid.levels", similarity.level_similarities(x, y, len(weights)).clamp_min(eps), 1e-9)
    values = similarity.ms_ssim(x, y, weights, eps=eps)
    loss = 1.0 - values.mean()
    yield Check("out.clamped.per_channel", values, 1e-9)
    yield Check("out.loss", loss, 1e-9)
    yield Check("out.grad_x", torch.autograd.grad(loss, x)[0], 1e-9)


def ms_ssim_l1_mix(golden: Golden) -> Iterator[Check]:
    """Zhao et al.'s mix: alpha (1 - MS-SSIM) + (1 - alpha) smoothed L1."""
    config = golden.config
    x, y = _pixels(golden)
    kernel = similarity.gaussian(config["l1_window"], config["l1_sigma"], x)
    l1 = similarity.smooth((x - y).abs(), kernel, padding=config["l1_window"] // 2).mean()
    structure = 1.0 - similarity.ms_ssim(x, y, config["weights"], eps=0.0).mean()
    loss = config["alpha"] * structure + (1.0 - config["alpha"]) * l1
    yield Check("out.l1_term", l1, 1e-9)
    yield Check("out.loss", loss, 1e-9)
    yield Check("out.grad_x0", torch.autograd.grad(loss, x)[0][:1], 1e-9)


def dists(golden: Golden) -> Iterator[Check]:
    """The whole of DISTS on a VGG16 of recipe weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.pth"
        torch.save(recipe_weights(vgg16(weights=None).features, golden.config["vgg_seed"]), path)
        loss = Dists(FoundWeights(path, "", official=False))
    x, y = (golden[f"in.{name}"].float() / 127.5 - 1.0 for name in "xy")
    y.requires_grad_()
    values = loss(x, y)
    yield Check("out.alpha_sum", loss.alpha.sum(), 1e-4)
    yield Check("out.beta_sum", loss.beta.sum(), 1e-4)
    yield Check("out.dists", values, 1e-4)
    means = torch.cat([layer.mean((2, 3)) for layer in loss.features(x / 2 + 0.5)], dim=1)
    yield Check("out.feature_means", means[:, ::25], 1e-4)
    (gradient,) = torch.autograd.grad(values.sum(), y)
    yield Check("out.grad_y0", gradient[:1] * 2.0, 1e-4)  # by pixels in [0,1]


def dists_head(golden: Golden) -> Iterator[Check]:
    """The distance of given feature maps, and the pooling."""
    layers = range(len(golden.config["channels"]))
    x, y = ([golden[f"in.{side}{number}"] for number in layers] for side in "xy")
    yield Check("out.dists", distance(x, y, golden["in.alpha"], golden["in.beta"]), 1e-6)
    yield Check("out.l2_pool", l2_pool(golden["in.pool_in"]), 1e-6)


def patchgan_loss(golden: Golden) -> Iterator[Check]:
    """VQGAN's losses of both players; every evaluation starts from the stored batch statistics."""
    config, images = golden.config, golden["in.inputs"]
    layer = golden["in.last_layer"].clone().requires_grad_()
    settings = AdversarialSettings(weight=config["disc_weight"], start=config["disc_start"])
    for mode in ("eval", "train"):
        yield Check(f"out.logits_real.{mode}", _discriminator(golden, mode)(images), TOLERANCE)
    for name in golden.group("out"):
        kind, _, rest = name.partition(".")
        if kind == "nll_loss":
            yield from _vqgan_generator(golden, rest, layer, settings)
        elif kind == "d_loss":
            loss, mode, step = rest.split(".")
            value = _discriminator_turn(golden, _discriminator(golden, mode), _loss(loss))
            factor = config["disc_factor"] * settings.discriminator_trains(int(step.removeprefix("step")))
            yield Check(f"out.{name}", factor * value, TOLERANCE)
    network = _discriminator(golden, "train")
    _discriminator_turn(golden, network, "hinge").backward()
    for name in golden.group("out"):
        if name.startswith("grad_disc."):
            yield Check(f"out.{name}", _given(network.get_parameter(name.removeprefix("grad_disc.")).grad), GRADIENT)
        elif name.startswith("disc_after_d_step."):
            yield Check(f"out.{name}", network.get_buffer(name.removeprefix("disc_after_d_step.")), TOLERANCE)


def _vqgan_generator(golden: Golden, variant: str, layer: Tensor, settings: AdversarialSettings) -> Iterator[Check]:
    loss, mode, step = variant.split(".")
    config, images, found = golden.config, golden["in.inputs"], _reconstruction(golden, layer)
    error = ((images - found).abs() + config["perceptual_weight"] * golden["in.p_loss"]).mean()
    adversarial = generator_loss(_discriminator(golden, mode)(found), _loss(loss)).mean()
    weight = adaptive_weight(error, adversarial, layer) * settings.weight
    factor = config["disc_factor"] * settings.factor(int(step.removeprefix("step")))
    total = error + weight * factor * adversarial + config["codebook_weight"] * golden["in.codebook_loss"]
    yield Check(f"out.nll_loss.{variant}", error, TOLERANCE)
    yield Check(f"out.g_loss.{variant}", adversarial, TOLERANCE)
    yield Check(f"out.d_weight.{variant}", weight, GRADIENT)
    yield Check(f"out.disc_factor.{variant}", torch.tensor(float(factor)), 0.0)
    yield Check(f"out.g_total.{variant}", total, TOLERANCE)
    yield Check(f"out.grad_last_layer.{variant}", torch.autograd.grad(total, layer)[0], GRADIENT)


def lpips_analytic(golden: Golden) -> Iterator[Check]:
    """LPIPS with VGG16 and heads filled by the recipe, with the gradient."""
    shapes = list(zip(golden.config["keys"], golden.config["shapes"]))
    trunk = [(key, shape) for key, shape in shapes if key.startswith("net.")]
    heads = [(key, shape) for key, shape in shapes if not key.startswith("net.")]
    state = _filled(trunk)
    for number, (key, shape) in enumerate(heads, start=1000):
        count = math.prod(shape)
        state[key] = (4.0 * _hashed(number, count) / count).view(shape).float()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.pth"
        torch.save({key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}, path)
        loss = Lpips("vgg", FoundWeights(path, "", official=False))
    loss.network.load_state_dict({key: state[key] for key, _ in heads}, strict=False)
    target = golden["in.target"].clone().requires_grad_()
    value = loss(golden["in.input"], target)
    yield Check("out.lpips", value.view(-1, 1, 1, 1), TOLERANCE)
    yield Check("out.grad_target", torch.autograd.grad(value.sum(), target)[0], GRADIENT)
    for number, layer in enumerate(loss.features(golden["in.input"])):
        yield Check(f"mid.feat_sum_{number}", layer.double().sum().float(), TOLERANCE)
        yield Check(f"mid.feat_absmean_{number}", layer.double().abs().mean().float(), TOLERANCE)


def vqloss(golden: Golden) -> Iterator[Check]:
    """LlamaGen's losses of both players, with its discriminator in train mode."""
    config, images = golden.config, golden["in.inputs"]
    layer = golden["in.last_layer"].clone().requires_grad_()
    settings = AdversarialSettings(weight=config["disc_weight"], start=config["disc_start"])
    given = sum(golden[f"in.{name}_loss"] for name in ("vq", "commit", "entropy"))
    for name in golden.group("out"):
        kind, _, variant = name.partition(".")
        step = int(variant.rpartition("step")[2])
        if kind == "d_loss":
            network = _discriminator(golden, "train")
            real, fake = network(images), network(_reconstruction(golden, layer).detach())
            loss = variant.split(".")[0]
            swapped = loss == "non-saturating"
            value = _swapped(real, fake) if swapped else discriminator_loss(real, fake, _loss(loss)).mean()
            yield Check(f"out.{name}", settings.weight * settings.discriminator_trains(step) * value, TOLERANCE)
        elif kind == "g_total":
            loss, adaptive, _ = variant.split(".")
            found = _reconstruction(golden, layer)
            power = 2 if config["reconstruction_loss"] == "l2" else 1
            error = config["reconstruction_weight"] * (images - found).abs().pow(power).mean()
            error = error + config["perceptual_weight"] * golden["in.p_loss"].mean()
            logits = _discriminator(golden, "train")(found)
            saturating = loss == "gen_non-saturating"
            adversarial = _swapped_generator(logits) if saturating else generator_loss(logits).mean()
            ratio = adaptive_weight(error, adversarial, layer) if adaptive == "adaptive_1" else 1.0
            total = error + ratio * settings.weight * settings.factor(step) * adversarial + given
            yield Check(f"out.g_total.{variant}", total, TOLERANCE)
            yield Check(f"out.grad_last_layer.{variant}", torch.autograd.grad(total, layer)[0], GRADIENT)


def stylegan_disc_analytic(golden: Golden) -> Iterator[Check]:
    """LlamaGen's StyleGAN-type discriminator with weights filled by the recipe."""
    config = golden.config
    network = StyleGAN(multiplier=config["channel_multiplier"]).build(config["image_size"])
    network.load_state_dict(_filled(list(zip(config["keys"], config["shapes"]))))
    image = golden["in.image"].clone().requires_grad_()
    x = image
    for number, block in enumerate(network.blocks):
        x = block(x)
        if number:
            yield Check(f"mid.block{number}_sum", x.double().sum().float(), 1e-4)
            yield Check(f"mid.block{number}_absmean", x.double().abs().mean().float(), TOLERANCE)
    logits = network(image)
    yield Check("out.logits", logits, TOLERANCE)
    yield Check("out.grad_image", torch.autograd.grad(logits.sum(), image)[0], GRADIENT)


CASES: dict[str, Case] = {
    "ms_ssim": ms_ssim,
    "ms_ssim_clamped": ms_ssim_clamped,
    "ms_ssim_l1_mix": ms_ssim_l1_mix,
    "dists": dists,
    "dists_head": dists_head,
}
VQGAN_CASES: dict[str, Case] = {"patchgan_loss": patchgan_loss, "lpips_analytic": lpips_analytic}
LLAMAGEN_CASES: dict[str, Case] = {"vqloss": vqloss, "stylegan_disc_analytic": stylegan_disc_analytic}


def _pixels(golden: Golden) -> tuple[Tensor, Tensor]:
    """Both batches in [0,1], float64; the first one takes a gradient."""
    return (golden["in.x"].double() / 255.0).requires_grad_(), golden["in.y"].double() / 255.0


def _given(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def _loss(name: str) -> AdversarialLoss:
    return "hinge" if name == "hinge" else "vanilla"


def _reconstruction(golden: Golden, layer: Tensor) -> Tensor:
    return F.conv2d(golden["in.feat"], layer, padding=1)


def _discriminator(golden: Golden, mode: str) -> PatchDiscriminator:
    config = golden.config
    settings = PatchGAN(width=config.get("disc_ndf") or config["disc_dim"], layers=config["disc_num_layers"])
    network = PatchDiscriminator(settings, channels=golden["in.inputs"].shape[1])
    state = {key.removeprefix("discriminator."): value for key, value in golden.group("param").items()}
    network.load_state_dict(state)
    return network.train(mode == "train")


def _discriminator_turn(golden: Golden, network: nn.Module, loss: AdversarialLoss) -> Tensor:
    """Two calls, real then fake, each with statistics of its own."""
    real = network(golden["in.inputs"])
    fake = network(_reconstruction(golden, golden["in.last_layer"]))
    return discriminator_loss(real, fake, loss).mean()


def _swapped_generator(logits: Tensor) -> Tensor:
    """LlamaGen's "non-saturating" generator loss: targets and logits swapped, BCE(logit 1, target D)."""
    return F.binary_cross_entropy_with_logits(torch.ones_like(logits), logits)


def _swapped(real: Tensor, fake: Tensor) -> Tensor:
    """Its discriminator loss: the term of the reconstructions is a constant."""
    zeros = torch.zeros_like(fake)
    return 0.5 * (_swapped_generator(real) + F.binary_cross_entropy_with_logits(zeros, fake))


def _hashed(number: int, count: int) -> Tensor:
    """Tensor `number` of the recipe `config.fill`: [count] float64 in [0,1), by 32-bit integer mixing."""
    mask = 0xFFFFFFFF
    x = (torch.arange(count) * 2654435761 + (number * 2654435769 + 374761393)) & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        x = ((x ^ (x >> shift)) * factor) & mask  # int64 wraps, its low 32 bits are right
    return (x ^ (x >> 16)).double() / 2**32


def _filled(shapes: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
    """Tensors of the recipe, numbered from 0: uniform, of He variance for weights."""
    state = {}
    for number, (key, shape) in enumerate(shapes):
        scale = math.sqrt(3) * math.sqrt(2 / math.prod(shape[1:])) if len(shape) >= 2 else 0.05
        state[key] = (scale * (2.0 * _hashed(number, math.prod(shape)) - 1.0)).view(shape).float()
    return state
