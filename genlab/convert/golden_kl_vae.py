"""Recomputes the golden files of the KL autoencoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genlab.convert.autoencoder_keys import from_published, to_taming
from genlab.convert.golden_fill import by_rule
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.weights import fill_all
from genlab.tokenization.kl import KL, KLTokenizer, divergence, negative_log_likelihood, posterior, sample

TIGHT = 1e-5


@torch.no_grad()
def autoencoder(golden: Golden) -> Iterator[Check]:
    """Encoder and posterior, decoder, or both, with the maps between the levels."""
    tokenizer = _tokenizer(golden.config)
    state = from_published(golden.group("param"))
    fill_all({name: value for name, value in tokenizer.state_dict().items() if name in state}, state, str(golden.path))
    maps = record_maps(tokenizer)
    found: dict[str, Tensor] = {}
    if "in.image" in golden.tensors:
        moments = tokenizer.encode(golden["in.image"])
        mean, log_variance = posterior(moments)
        found |= {"moments": moments, "mean": mean, "mode": mean, "logvar": log_variance, "kl": divergence(moments)}
        if "in.eps" in golden.tensors:
            found["sample"] = sample(moments, golden["in.eps"])
        if "in.nll_target" in golden.tensors:
            found["nll"] = negative_log_likelihood(moments, golden["in.nll_target"])
    if "in.z" in golden.tensors:
        found["image"] = tokenizer.decode(golden["in.z"])
    yield from checks(golden, found, maps)


@torch.no_grad()
def full_formula(golden: Golden) -> Iterator[Check]:
    """The network in its true size, its weights computed."""
    with torch.device("meta"):
        tokenizer = _tokenizer(golden.config)
    shapes = {name: value.shape for name, value in to_taming(tokenizer.state_dict()).items()}
    tokenizer.load_state_dict(from_published(by_rule(shapes)), assign=True)
    maps = record_maps(tokenizer)
    found = {"moments": tokenizer.encode(golden["in.image"]), "image": tokenizer.decode(golden["in.z"])}
    yield from checks(golden, found, maps)


CASES: dict[str, Case] = {"autoencoder": autoencoder, "full_formula": full_formula}


def record_maps(tokenizer: nn.Module) -> dict[str, Tensor]:
    """Fills, in every forward, with the maps that the files call enc_in, enc_down0, enc_mid, dec_up0, ..."""
    maps: dict[str, Tensor] = {}
    encoder, decoder = tokenizer.get_submodule("encoder"), tokenizer.get_submodule("decoder")
    downs, ups = (
        list(encoder.get_submodule("down_blocks").children()),
        list(decoder.get_submodule("up_blocks").children()),
    )
    parts = {"enc_out": encoder, "dec_out": decoder}
    parts |= {f"enc_down{level}": block for level, block in enumerate(downs)}
    parts |= {f"dec_up{level}": block for level, block in enumerate(reversed(ups))}
    for side, network in (("enc", encoder), ("dec", decoder)):
        middle = network.get_submodule("mid_block")
        parts |= {f"{side}_in": network.get_submodule("conv_in"), f"{side}_mid": middle}
        for name, kind in (("block_1", "resnets.0"), ("attn", "attentions.0"), ("block_2", "resnets.1")):
            if kind.partition(".")[0] == "resnets" or getattr(middle, "attentions", None):
                parts[f"{side}_mid_{name}"] = middle.get_submodule(kind)
    for name, part in parts.items():
        part.register_forward_hook(lambda _part, _args, out, name=name: maps.update({name: out.detach()}))
    return maps


def checks(golden: Golden, found: Mapping[str, Tensor], maps: Mapping[str, Tensor]) -> Iterator[Check]:
    """One check for each output and intermediate map that the file has and we know."""
    for name in golden.group("mid"):
        if name in maps:
            yield Check(f"mid.{name}", maps[name], TIGHT)
    for name in golden.group("out"):
        if name in found:
            yield Check(f"out.{name}", found[name], TIGHT)


def _tokenizer(config: Mapping[str, Any]) -> KLTokenizer:
    levels = range(len(config["ch_mult"]))
    attended = {
        side: tuple(level for level in levels if config["resolution"] >> level in config[f"{side}_attn_resolutions"])
        for side in ("enc", "dec")
    }
    settings = KL(
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        channels=config["z_channels"],
        attention=attended["enc"],
        decoder_attention=attended["dec"],
    )
    return settings.build(config["resolution"]).eval()
