"""Published VQGANs -> genlab's `VQ`: of taming-transformers, latent diffusion, LlamaGen, MaskGIT and RQ-VAE."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.convert.autoencoder_keys import State, from_published, read_settings, to_llamagen, to_taming
from genlab.tokenization.quantizers.gumbel import GumbelVQ
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.quantizers.vector import LearnedVQ
from genlab.tokenization.vq import VQ

_CODEBOOK = "quantizer.embedding.weight"
_BOOK = {"weight": "weight", "cluster_size_ema": "counts", "embed_ema": "sums"}


def taming(state: State, where: str, groups: int = 32) -> tuple[VQ, State]:
    """taming-transformers and latent diffusion: nearest codes, trained with the weighting that they call legacy."""
    return _nearest(state, where, groups, legacy=True)


def llamagen(state: State, where: str, groups: int = 32) -> tuple[VQ, State]:
    """LlamaGen: codes of length 1."""
    return _nearest(state, where, groups, unit=True)


def maskgit(state: State, where: str, groups: int = 32) -> tuple[VQ, State]:
    """MaskGIT and MAGE: their own network, on pixels in [0,1]."""
    return _nearest(state, where, groups, {"network": "maskgit", "unit_pixels": True}, legacy=True)


def gumbel(state: State, where: str, groups: int = 32) -> tuple[VQ, State]:
    """taming-transformers' Gumbel VQGAN, at the end of its training."""
    named = _named(state)
    vocab, channels = named["quantizer.embed.weight"].shape
    quantizer = GumbelVQ(vocab=vocab)
    named["quantizer.updates"] = torch.tensor(quantizer.steps)
    return _config(named, where, groups, channels, quantizer), named


def residual(state: State, where: str, groups: int = 32) -> tuple[VQ, State]:
    """RQ-VAE: several codes a position; a codebook that the file repeats for every depth is shared."""
    named = _named(state)
    tables = [named[key] for key in sorted(named) if re.fullmatch(r"quantizer\.codebooks\.\d+\.weight", key)]
    shared = len(tables) > 1 and all(table.equal(tables[0]) for table in tables)
    named = dict(_books(named, shared))
    rows, channels = tables[0].shape
    quantizer = ResidualVQ(vocab=rows - 1, depth=len(tables), shared=shared)
    return _config(named, where, groups, channels, quantizer), named


def is_gumbel(state: State) -> bool:
    return "quantize.embed.weight" in state


def is_residual(state: State) -> bool:
    return "quantizer.codebooks.0.weight" in state


def is_maskgit(state: State) -> bool:
    return "quantize.embedding.weight" in state and "encoder.conv_in.bias" not in state


def is_llamagen(state: State) -> bool:
    return "quantize.embedding.weight" in state and any(key.startswith("encoder.conv_blocks.") for key in state)


def is_taming(state: State) -> bool:
    return "quantize.embedding.weight" in state and not is_maskgit(state) and not is_llamagen(state)


def to_published(state: Mapping[str, Tensor], family: str) -> State:
    """genlab's names -> those of LlamaGen, or of taming-transformers and its like."""
    renamed = to_llamagen(state) if family == "llamagen" else to_taming(state)
    return {re.sub(r"^quantizer\.", "quantize.", key): value for key, value in renamed.items()}


def _nearest(
    state: State, where: str, groups: int, fields: Mapping[str, Any] | None = None, **quantizer: Any
) -> tuple[VQ, State]:
    named = _named(state)
    vocab, channels = named[_CODEBOOK].shape
    return _config(named, where, groups, channels, LearnedVQ(vocab=vocab, **quantizer), fields), named


def _config(
    named: State, where: str, groups: int, channels: int, quantizer: Any, fields: Mapping[str, Any] | None = None
) -> VQ:
    settings = read_settings(named, where, groups)
    kernel = int(named["quant_conv.weight"].shape[-1]) if "quant_conv.weight" in named else 0
    code_channels = None if channels == settings["channels"] else channels
    return VQ(**settings, code_channels=code_channels, quant_kernel=kernel, quantizer=quantizer, **(fields or {}))


def _books(named: State, shared: bool) -> Iterator[tuple[str, Tensor]]:
    """RQ-VAE's codebooks under genlab's names, without the row that pads them."""
    for key, value in named.items():
        match = re.fullmatch(r"quantizer\.codebooks\.(\d+)\.(\w+)", key)
        if match is None:
            yield key, value
        elif not (shared and int(match[1])):
            book, entry = f"quantizer.books.{match[1]}", _BOOK[match[2]]
            yield f"{book}.{entry}", value[:-1] if entry == "weight" else value
            yield f"{book}.updates", torch.zeros((), dtype=torch.int64)


def _named(state: State) -> State:
    named = {re.sub(r"^quantize\.", "quantizer.", key): value for key, value in from_published(state).items()}
    named.pop("quantizer.codebook_used", None)  # the last 65536 codes of LlamaGen's training
    return named
