"""Recomputes the golden files of the VQGANs of taming-transformers and MaskGIT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genlab.convert import golden_losses, golden_quantizers
from genlab.convert.autoencoders import convert_state
from genlab.convert.golden_fill import hashed
from genlab.convert.goldens import Case, Check, Golden
from genlab.convert.vq_tokenizers import to_published
from genlab.core.contracts import Reconstruction
from genlab.tokenization.vq import VQTokenizer
from samplers.noise import spawn

TIGHT = 1e-5


def taming(golden: Golden) -> Iterator[Check]:
    """Latents, codes, images; losses of both weightings with their gradients, where the file has them."""
    tokenizer = build(golden, "vqgan", commitment=golden.config["beta"])
    yield from images_and_codes(golden, tokenizer)
    for weighting in ("legacy", "fixed"):
        if f"out.qloss_{weighting}" not in golden.tensors:
            continue
        tokenizer = build(golden, "vqgan", commitment=golden.config["beta"], legacy=weighting == "legacy")
        images = golden["in.image"].clone().requires_grad_()
        result = tokenizer(images, spawn(0, range(len(images))))
        yield Check(f"out.qloss_{weighting}", result.loss.mean(), TIGHT)
        if "in.recon_weight" in golden.tensors:
            yield from gradients(golden, tokenizer, images, result, f"grad_{weighting}.", "vqgan")


@torch.no_grad()
def maskgit(golden: Golden) -> Iterator[Check]:
    """Latents, codes, images in [0,1], and the quantiser's loss."""
    tokenizer = build(golden, "maskgit", commitment=golden.config["beta"])
    images = 2.0 * golden["in.image01"] - 1.0
    h = tokenizer.features(images)
    quantized = tokenizer.quantizer(h)
    codes = tokenizer.encode(images)
    yield Check("mid.h", h, TIGHT)
    yield Check("out.indices", codes, 0.0)
    yield Check("out.quant", tokenizer.embed(codes), TIGHT)
    yield Check("out.qloss", quantized.loss.mean(), TIGHT)
    yield Check("out.recon", 0.5 * tokenizer.reconstruct(quantized.z) + 0.5, TIGHT)
    yield Check("out.recon_from_indices", 0.5 * tokenizer.decode(codes) + 0.5, TIGHT)


CASES: dict[str, Case] = {
    "taming_vqmodel": taming,
    "taming_analytic": taming,
    "maskgit_vqgan": maskgit,
    **golden_losses.VQGAN_CASES,
    **golden_quantizers.VQGAN_CASES,
}


def build(golden: Golden, family: str, **quantizer: Any) -> VQTokenizer:
    """The tokenizer with the file's weights (or those that its formula gives) and these settings of the quantiser."""
    config = golden.config
    state = golden.group("param")
    if not state:
        state = hashed(config["keys"], config["shapes"], config["codebook_scale"])
    settings, state = convert_state(state, str(golden.path), family)
    settings = settings.model_copy(update={"quantizer": settings.quantizer.model_copy(update=quantizer)})
    tokenizer: VQTokenizer = settings.build(settings.stride)
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


@torch.no_grad()
def images_and_codes(golden: Golden, tokenizer: VQTokenizer) -> Iterator[Check]:
    """For every image of the file: encoder, features, codes, their vectors, and images from either."""
    known = {name for name in golden.tensors if name.startswith(("mid.", "out."))}
    for name, images in golden.group("in").items():
        if not name.startswith("image"):
            continue
        suffix = name.removeprefix("image")
        h = tokenizer.features(images)
        codes = tokenizer.encode(images)
        found = {
            "mid.encoder_out": tokenizer.encoder(images),
            "mid.h": h,
            "out.indices": codes,
            "out.quant": tokenizer.embed(codes),
            "out.recon": tokenizer.reconstruct(tokenizer.quantizer(h).z),
            "out.recon_from_indices": tokenizer.decode(codes),
        }
        for output, value in found.items():
            if output + suffix in known:
                yield Check(output + suffix, value, 0.0 if output == "out.indices" else TIGHT)


def gradients(
    golden: Golden,
    tokenizer: VQTokenizer,
    images: Tensor,
    result: Reconstruction,
    prefix: str,
    family: str,
    tolerance: float = TIGHT,
) -> Iterator[Check]:
    """Of mean(reconstruction * weight) + the quantiser's loss, by the images and by parameters."""
    ((result.images * golden["in.recon_weight"]).mean() + result.loss.mean()).backward()
    found = to_published({name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}, family)
    assert images.grad is not None
    for name in golden.group("out"):
        if name.startswith(prefix):
            key = name.removeprefix(prefix)
            yield Check(f"out.{name}", images.grad if key == "image" else found[key], tolerance)
