"""Recomputes the golden files of LlamaGen's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genlab.convert import golden_losses
from genlab.convert.golden_vqgan import TIGHT, build, gradients, images_and_codes
from genlab.convert.goldens import Case, Check, Golden
from samplers.noise import spawn

SHARP = 1e-3  # the entropy's gradient: its temperature of 0.01 enlarges the rounding of distances a hundred times


def vq_model(golden: Golden) -> Iterator[Check]:
    """Latents, codes, images; in training the three losses, their gradients and the usage of codes."""
    config = golden.config
    beta, ratio = config.get("commit_loss_beta", 0.25), config.get("entropy_loss_ratio", 0.0)
    unit = config.get("codebook_l2_norm", True)
    tokenizer = build(golden, "llamagen", commitment=beta, entropy=ratio, unit=unit)
    yield from images_and_codes(golden, tokenizer)
    if "in.recon_weight" not in golden.tensors:
        return
    images = golden["in.image"].clone().requires_grad_()
    result = tokenizer.train()(images, spawn(0, range(len(images))))
    yield Check("out.vq_loss", result.terms["codebook"].mean(), TIGHT)
    yield Check("out.commit_loss", beta * result.terms["commitment"].mean(), TIGHT)
    yield Check("out.entropy_loss", ratio * result.terms["entropy"].mean(), TIGHT)
    tolerance = SHARP if ratio else TIGHT
    yield from gradients(golden, tokenizer, images, result, "grad.", "llamagen", tolerance)
    # The reference's meter: the last 65536 codes, of which the file stores the end; the others are still zero.
    assert result.codes is not None
    tail = golden["in.codebook_used_tail"]
    used = torch.cat([tail, result.codes.flatten().float()])
    yield Check("out.codebook_used_tail", used[-len(tail) :], 0.0)
    yield Check("out.codebook_usage", torch.tensor(len({0.0, *used.tolist()}) / config["codebook_size"]), TIGHT)


CASES: dict[str, Case] = {"vqmodel": vq_model, "vq_analytic": vq_model, **golden_losses.LLAMAGEN_CASES}
