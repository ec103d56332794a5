"""Published files of VAR's and FlexVAR's tokenizers -> genlab's. Encoder and decoder go through `autoencoder_keys`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from genlab.convert.autoencoder_keys import State, from_published, read_settings
from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.tokenization.multiscale import (
    VAR_256,
    VAR_512,
    FlexibleTokenizer,
    FlexibleVQ,
    MultiscaleTokenizer,
    MultiscaleVQ,
)
from genlab.tokenization.quantizers.multiscale import MultiscaleQuantization
from genlab.tokenization.quantizers.vector import LearnedVQ

_PHI = re.compile(r"quant_resi\.(?:qresi_ls\.)?(\d+)\.")
_WELL_MIXED = 100  # published hits are averages over many steps
_FLEXVAR_WIDTH = 32  # channels of FlexVAR's codes; LlamaGen's tokenizers have the same names, but 8 channels


def detect(state: Mapping[str, Tensor]) -> Literal["multiscale", "flexible"] | None:
    """Whose tokenizer this is, by the published names; None: neither's."""
    if "quantize.ema_vocab_hit_SV" in state or any(key.startswith("quantize.quant_resi.") for key in state):
        return "multiscale"
    codebook = state.get("quantize.embedding.weight")
    like_llamagen = any(key.startswith("encoder.conv_blocks.") for key in state)
    return "flexible" if like_llamagen and codebook is not None and codebook.shape[1] == _FLEXVAR_WIDTH else None


def convert(state: Mapping[str, Tensor], where: str, groups: int = 32) -> tuple[MultiscaleVQ | FlexibleVQ, State]:
    """The config and the weights under genlab's names of a published state dict that `detect` knows.

    Args:
        where: the file, for messages.
        groups: of the group normalisation, which leaves no trace in the weights.

    Raises:
        CheckpointError: neither tokenizer, or parts are missing.
    """
    family = detect(state)
    if family is None:
        raise CheckpointError(f"{where}: a tokenizer neither of VAR nor of FlexVAR")
    return (multiscale if family == "multiscale" else flexible)(state, where, groups)


def multiscale(state: Mapping[str, Tensor], where: str, groups: int = 32) -> tuple[MultiscaleVQ, State]:
    """The same for VAR's. What files do not tell is taken from the published model: scales, r, the plain look-up."""
    named = {**_named(state), "quantizer.updates": torch.tensor(_WELL_MIXED)}
    own = "quantize.quant_resi.0.weight" in state
    phis = sum(name.startswith("quantizer.phis.") and name.endswith(".bias") for name in named)
    config = MultiscaleVQ(
        **read_settings(named, where, groups),
        quant_kernel=_kernel(named, where),
        quantizer=MultiscaleQuantization(
            vocab=named["quantizer.embedding.weight"].shape[0],
            phis=0 if own else max(phis, 1),
            phi_strength=0.5 if phis else 0.0,
        ),
        scales=(VAR_256, VAR_512),
    )
    return config, named


def flexible(state: Mapping[str, Tensor], where: str, groups: int = 32) -> tuple[FlexibleVQ, State]:
    """The same for FlexVAR's."""
    named = _named(state)
    named.pop("quantizer.codebook_used", None)
    named["updates"] = torch.zeros((), dtype=torch.int64)
    vocab, channels = named["quantizer.embedding.weight"].shape
    config = FlexibleVQ(
        **read_settings(named, where, groups),
        quant_kernel=_kernel(named, where),
        quantizer=LearnedVQ(vocab=vocab, unit=True),
        code_channels=channels,
    )
    return config, named


def quantizer_name(name: str) -> str:
    """A published name of the quantiser or one of its parts -> genlab's; other names are left alone."""
    name = re.sub(r"^quantize\.", "quantizer.", name).replace("quant_resi.qresi.", "quant_resi.0.")
    return _PHI.sub(r"phis.\1.", name).replace("ema_vocab_hit_SV", "hits")


def fill(tokenizer: MultiscaleTokenizer | FlexibleTokenizer, state: State, where: str) -> None:
    """Fill a tokenizer with converted weights; usage counts of another number of scales are left out.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = tokenizer.state_dict()
    counts = {"quantizer.hits", "quantizer.updates"} & set(own)
    if counts and state.get("quantizer.hits", torch.empty(0)).shape != own["quantizer.hits"].shape:
        own = {name: value for name, value in own.items() if name not in counts}
        state = {name: value for name, value in state.items() if name not in counts}
    fill_all(own, state, where)


def _named(state: Mapping[str, Tensor]) -> State:
    return {quantizer_name(name): value for name, value in from_published(state).items()}


def _kernel(state: Mapping[str, Tensor], where: str) -> int:
    if "quant_conv.weight" not in state or "quantizer.embedding.weight" not in state:
        raise CheckpointError(f"{where}: lacks quant_conv.weight or quantize.embedding.weight")
    return int(state["quant_conv.weight"].shape[-1])
