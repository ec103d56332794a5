"""Recomputes the golden files of FlexVAR: the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.convert import multiscale_tokenizers
from genlab.convert.autoencoder_keys import to_llamagen
from genlab.convert.golden_var import encoder_of
from genlab.convert.goldens import Case, Check, Golden
from genlab.tokenization.multiscale import FlexibleTokenizer, FlexibleVQ
from genlab.tokenization.quantizers.multiscale import enlarge, grid_of, grids_of, split
from genlab.tokenization.quantizers.vector import LearnedVQ

TIGHT, IMAGE, GRADIENT, EXACT = 1e-5, 2e-5, 1e-4, 0.0
SHARP = 1e-3  # the entropy's gradient: its temperature of 0.01 enlarges the rounding of distances a hundred times


def tokenizer(golden: Golden) -> Iterator[Check]:
    """The latent's own size alone, all scales of the schedule, and a training pass."""
    tokenizer, images = build_tokenizer(golden), golden["in.image"]
    grids = grids_of(golden.config["scales"])
    with torch.no_grad():
        features = tokenizer.features(images)
        yield Check("mid.encoder", tokenizer.encoder(images), TIGHT)
        yield Check("mid.f", features, TIGHT)
        full = (grid_of(features),)
        codes = tokenizer.encode(images, full)
        yield Check("out.idx_full", codes.flatten(), EXACT)
        quant, _ = tokenizer.step(0, None, codes, full)
        yield Check("out.quant_full", quant, TIGHT)
        yield Check("out.rec_full", tokenizer.decode(codes, full), IMAGE)
        codes = tokenizer.encode(images, grids)
        for k, (part, image) in enumerate(zip(split(codes, grids), tokenizer.decode_scales(codes, grids))):
            maps, _ = tokenizer.step(k, None, part, grids)
            yield Check(f"out.idx.{k}", part, EXACT)
            yield Check(f"mid.quant.{k}", maps, TIGHT)
            yield Check(f"out.img.{k}", image, IMAGE)
            if k == len(grids) - 2 and "out.img_ms_upsampled_last_but_one" in golden.tensors:
                yield Check("out.img_ms_upsampled_last_but_one", enlarge(image, grid_of(images)), IMAGE)
        yield Check("out.var_input", tokenizer.inputs(codes, grids), TIGHT)
    yield from _training(golden, tokenizer)


CASES: dict[str, Case] = {"tokenizer": tokenizer}


def _training(golden: Golden, tokenizer: FlexibleTokenizer) -> Iterator[Check]:
    """One pass at the latent's own size alone, as the reference's module trains."""
    images, config = golden["in.image"], tokenizer.config.quantizer
    assert isinstance(config, LearnedVQ)
    z, codes, loss, terms = tokenizer.quantizer(tokenizer.features(images))
    reconstruction = tokenizer.reconstruct(z)
    weighted = [
        weight * terms[name].mean() if weight else torch.zeros(())
        for name, weight in (("codebook", 1.0), ("commitment", config.commitment), ("entropy", config.entropy))
    ]
    yield Check("out.train.rec", reconstruction, IMAGE)
    yield Check("out.train.vq_commit_entropy", torch.stack(weighted), TIGHT)
    yield Check("out.train.usage", _usage(codes, config.vocab), TIGHT)
    (F.mse_loss(reconstruction, images) + loss.mean()).backward()
    gradients = {name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}
    official = to_llamagen(gradients)
    for name in golden.tensors:
        if name.startswith(prefix := "out.train.grad."):
            ours = multiscale_tokenizers.quantizer_name(name.removeprefix(prefix))
            yield Check(name, official[ours], SHARP if config.entropy else GRADIENT)


def _usage(codes: Tensor, vocab: int) -> Tensor:
    """Share of the codes among these; the reference's buffer still holds zeros too."""
    distinct = torch.cat([codes.flatten(), codes.new_zeros(1)]).unique().numel()
    return torch.tensor([distinct / vocab])


def build_tokenizer(golden: Golden, parameters: str = "param") -> FlexibleTokenizer:
    """The file's tokenizer, whose weights are under `parameters`; an encoder that is not there keeps fresh ones."""
    config = golden.config["vae"]
    lowest = len(config["ch_mult"]) - 1
    settings = FlexibleVQ(
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        attention=(lowest,),
        channels=config["z_channels"],
        groups=config["norm_groups"],
        code_channels=config["codebook_embed_dim"],
        scales=tuple(golden.config["scales"]),
        quantizer=LearnedVQ(
            vocab=config["codebook_size"],
            unit=config["codebook_l2_norm"],
            entropy=config.get("entropy_loss_ratio", 0.0),
            commitment=config.get("commit_loss_beta", 0.25),
        ),
    )
    tokenizer = settings.build(golden.config["scales"][-1] * settings.stride)
    official = {**to_llamagen(encoder_of(tokenizer)), **golden.group(parameters)}
    _, state = multiscale_tokenizers.flexible(official, str(golden.path), config["norm_groups"])
    multiscale_tokenizers.fill(tokenizer, state, str(golden.path))
    return tokenizer
