"""Recomputes the golden files of VAR: the multi-scale quantiser, and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.convert import multiscale_tokenizers
from genlab.convert.autoencoder_keys import to_taming
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.weights import fill_all
from genlab.tokenization.multiscale import MultiscaleTokenizer, MultiscaleVQ, NextScaleTokenizer
from genlab.tokenization.quantizers.multiscale import (
    Grid,
    MultiscaleQuantization,
    MultiscaleQuantizer,
    as_map,
    enlarge,
    grids_of,
    split,
)
from samplers.noise import spawn

TIGHT, IMAGE, GRADIENT, EXACT = 1e-5, 2e-5, 1e-4, 0.0
_USED = 0.08  # of the mean number of hits: what the reference calls a used code


def quantizer(golden: Golden) -> Iterator[Check]:
    """Codes, sums and inputs; training steps with their losses, gradients and counts; other aspect ratios."""
    config = golden.config["quantizer"]
    quantizer = _quantization(config).build(config["Cvae"], config["v_patch_nums"])
    quantizer.ages_by_scale = True
    state = {multiscale_tokenizers.quantizer_name(name): value for name, value in golden.group("param").items()}
    fill_all(quantizer.state_dict(), {**state, "updates": torch.tensor(0)}, str(golden.path))
    with torch.no_grad():
        f = golden["in.f.0"]
        codes = quantizer.encode(f)
        yield from _codes("out.idx", codes, quantizer.scales)
        sums = list(quantizer.sums(codes))
        for k, after in enumerate(sums):
            yield Check(f"mid.fhat_mean_abs.{k}", after.abs().mean().view(1), TIGHT)
        yield Check("out.fhat_last", sums[-1], TIGHT)
        yield Check("out.var_input", quantizer.inputs(codes), TIGHT)
        if "in.f_rect" in golden.tensors:
            grids = grids_of([tuple(grid) for grid in config["rect"]])
            codes = quantizer.encode(golden["in.f_rect"], grids)
            yield from _codes("out.rect_idx", codes, grids)
            yield Check("out.rect_fhat_last", quantizer.decode(codes, grids), TIGHT)
    for step in range(golden.config["steps"]):
        f = golden[f"in.f.{step}"].clone().requires_grad_(step == 0)
        z, _, loss, _ = quantizer(f)
        yield Check(f"out.step{step}.vq_loss", loss.mean().view(1), TIGHT)
        yield Check(f"out.step{step}.usages", _usage(quantizer, f), TIGHT)
        yield Check(f"out.step{step}.ema_vocab_hit_SV", quantizer.hits.clone(), TIGHT)
        updates = quantizer.updates * len(quantizer.scales)  # the reference counts scales
        yield Check(f"out.step{step}.record_hit", updates.view(1), EXACT)
        if step == 0:
            yield Check("out.step0.f_hat", z, TIGHT)
            slope = torch.linspace(-1, 1, z.numel()).view_as(z)
            (3 * loss.mean() + 0.01 * (z * slope).sum()).backward()
            assert f.grad is not None
            yield Check("out.step0.grad_f", f.grad, GRADIENT)
            gradients = {name: p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
            yield from _gradients(golden, "out.step0.grad.", gradients)


def tokenizer(golden: Golden) -> Iterator[Check]:
    """Codes, sums, images of the first scales, the generator's inputs, and a training pass."""
    tokenizer, images = build_tokenizer(golden), golden["in.image"]
    quantizer = tokenizer.quantizer
    with torch.no_grad():
        f = tokenizer.features(images)
        yield Check("mid.encoder", tokenizer.encoder(images), TIGHT)
        yield Check("mid.f", f, TIGHT)
        codes = tokenizer.encode(images)
        yield from _codes("out.idx", codes, tokenizer.scales)
        parts = split(codes, tokenizer.scales)
        state = None
        for k, part in enumerate(parts):
            state, following = tokenizer.step(k, state, part)
            after = state if following is None else as_map(following, tokenizer.scales[k + 1])
            yield Check(f"mid.fhat.{k}", state, TIGHT)
            yield Check(f"out.next_map.{k}", after, TIGHT)
            yield Check(f"out.img_from_idx.{k}", tokenizer.decode(torch.cat(parts[: k + 1], dim=1)).clamp(-1, 1), IMAGE)
        yield Check("out.rec_last", tokenizer.decode(codes).clamp(-1, 1), IMAGE)
        yield Check("out.var_input", tokenizer.inputs(codes), TIGHT)
        yield Check("out.img_experimental_growing", tokenizer.reconstruct(_grown(tokenizer, parts)).clamp(-1, 1), IMAGE)
    yield Check("out.train_usages", _usage(quantizer, f), TIGHT)
    found = tokenizer(images, spawn(0, range(len(images))))
    loss = found.loss.mean()
    total = F.mse_loss(found.images, images) + loss
    yield Check("out.train_rec", found.images, IMAGE)
    yield Check("out.train_vq_loss", loss.view(1), TIGHT)
    yield Check("out.train_total", total.view(1), TIGHT)
    total.backward()
    gradients = {name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}
    yield from _gradients(golden, "out.grad.", to_taming(gradients))


CASES: dict[str, Case] = {"quantizer": quantizer, "tokenizer": tokenizer}


def _quantization(config: Mapping[str, Any]) -> MultiscaleQuantization:
    return MultiscaleQuantization(
        vocab=config["vocab_size"],
        phis=config["share_quant_resi"],
        phi_strength=abs(config["quant_resi"]),
        cosine=config["using_znorm"],
        commitment=config["beta"],
    )


def build_tokenizer(golden: Golden, parameters: str = "param") -> MultiscaleTokenizer:
    """The file's tokenizer, whose weights are under `parameters`; an encoder that is not there keeps fresh ones."""
    config = golden.config["vae"]
    lowest = len(config["ch_mult"]) - 1
    settings = MultiscaleVQ(
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        attention=(lowest,) if config["using_sa"] else (),
        mid_attention=config["using_mid_sa"],
        channels=config["z_channels"],
        groups=config["norm_groups"],
        quant_kernel=config["quant_conv_ks"],
        quantizer=_quantization(config),
        scales=tuple(config["v_patch_nums"]),
    )
    tokenizer = settings.build(config["v_patch_nums"][-1] * settings.stride)
    official = {**to_taming(encoder_of(tokenizer)), **golden.group(parameters)}
    _, state = multiscale_tokenizers.multiscale(official, str(golden.path), config["norm_groups"])
    multiscale_tokenizers.fill(tokenizer, state, str(golden.path))
    return tokenizer


def encoder_of(tokenizer: NextScaleTokenizer) -> dict[str, Tensor]:
    """The weights that files of generation leave out."""
    return {k: v for k, v in tokenizer.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}


def _codes(name: str, codes: Tensor, grids: tuple[Grid, ...]) -> Iterator[Check]:
    for k, part in enumerate(split(codes, grids)):
        yield Check(f"{name}.{k}", part, EXACT)


def _usage(quantizer: MultiscaleQuantizer, f: Tensor) -> Tensor:
    """With the reference's margin, which is the same on all scales."""
    return quantizer.usage(margin=_USED * f[:, 0].numel() / quantizer.vocab)


def _grown(tokenizer: MultiscaleTokenizer, parts: list[Tensor]) -> Tensor:
    """The reference's experimental sum, which has each scale's own size until the next one enlarges it."""
    quantizer, total = tokenizer.quantizer, torch.zeros(1)
    for k, (part, grid) in enumerate(zip(parts, tokenizer.scales)):
        h = quantizer.refine(k, as_map(quantizer.embedding(part), grid), len(parts))
        total = h if k == 0 else enlarge(total, grid) + h
    return total


def _gradients(golden: Golden, prefix: str, gradients: Mapping[str, Tensor]) -> Iterator[Check]:
    """The gradients in the file, of official parameters."""
    for name in golden.tensors:
        if name.startswith(prefix):
            yield Check(name, gradients[multiscale_tokenizers.quantizer_name(name.removeprefix(prefix))], GRADIENT)
