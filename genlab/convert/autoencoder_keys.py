"""Parameter names of the published convolutional autoencoders <-> genlab's, which are those of diffusers.

taming-transformers, latent diffusion, MAR, MaskGIT and VAR name the parts alike; LlamaGen and FlexVAR have names of
their own. Sizes are read from the names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from genlab.core.errors import CheckpointError

State: TypeAlias = dict[str, Tensor]
_Rules: TypeAlias = tuple[tuple[str, str], ...]

_TAMING: _Rules = (  # their name, genlab's; {} is a number; applied one after the other
    ("encoder.down.{}.block.{}.", "encoder.down_blocks.{}.resnets.{}."),
    ("encoder.down.{}.attn.{}.", "encoder.down_blocks.{}.attentions.{}."),
    ("encoder.down.{}.downsample.", "encoder.down_blocks.{}.downsamplers.0."),
    ("decoder.up.{}.block.{}.", "decoder.up_blocks.{}.resnets.{}."),
    ("decoder.up.{}.attn.{}.", "decoder.up_blocks.{}.attentions.{}."),
    ("decoder.up.{}.upsample.", "decoder.up_blocks.{}.upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
)
_LLAMAGEN: _Rules = (
    ("encoder.conv_blocks.{}.res.{}.", "encoder.down_blocks.{}.resnets.{}."),
    ("encoder.conv_blocks.{}.attn.{}.", "encoder.down_blocks.{}.attentions.{}."),
    ("encoder.conv_blocks.{}.downsample.", "encoder.down_blocks.{}.downsamplers.0."),
    ("decoder.conv_blocks.{}.res.{}.", "decoder.up_blocks.{}.resnets.{}."),
    ("decoder.conv_blocks.{}.attn.{}.", "decoder.up_blocks.{}.attentions.{}."),
    ("decoder.conv_blocks.{}.upsample.", "decoder.up_blocks.{}.upsamplers.0."),
    (".mid.0.", ".mid_block.resnets.0."),
    (".mid.1.", ".mid_block.attentions.0."),
    (".mid.2.", ".mid_block.resnets.1."),
)
_PARTS: _Rules = (
    (".norm_out.", ".conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".attentions.{}.norm.", ".attentions.{}.group_norm."),
    (".attentions.{}.qkv.", ".attentions.{}.to_qkv."),
    (".attentions.{}.q.", ".attentions.{}.to_q."),
    (".attentions.{}.k.", ".attentions.{}.to_k."),
    (".attentions.{}.v.", ".attentions.{}.to_v."),
    (".attentions.{}.proj_out.", ".attentions.{}.to_out.0."),
)
_OLD_DIFFUSERS: _Rules = (
    (".attentions.{}.query.", ".attentions.{}.to_q."),
    (".attentions.{}.key.", ".attentions.{}.to_k."),
    (".attentions.{}.value.", ".attentions.{}.to_v."),
    (".attentions.{}.proj_attn.", ".attentions.{}.to_out.0."),
)
_PROJECTION = re.compile(r"\.attentions\.\d+\.(to_q|to_k|to_v|to_qkv|to_out\.0)\.weight$")


def from_published(state: Mapping[str, Tensor]) -> State:
    """Encoder and decoder under genlab's names, whoever named them; all other entries as they are."""
    if any(key.startswith(("encoder.conv_blocks.", "decoder.conv_blocks.")) for key in state):
        rules = _LLAMAGEN + _PARTS
    elif any(key.startswith(("encoder.down.", "decoder.up.")) for key in state):
        rules = _TAMING + _PARTS
    else:
        rules = _OLD_DIFFUSERS
    highest = _highest_level(state, r"decoder\.up\.(\d+)\.")
    named: State = {}
    for key, value in state.items():
        name = _rename(_turn_levels(key, r"decoder\.up\.(\d+)\.", highest), rules)
        value = value.flatten(1) if _PROJECTION.search(name) else value
        if ".to_qkv." in name:
            named |= {name.replace("to_qkv", f"to_{part}"): third for part, third in zip("qkv", value.chunk(3))}
        else:
            named[name] = value
    return named


def to_taming(state: Mapping[str, Tensor]) -> State:
    """genlab's encoder and decoder under the names of taming-transformers."""
    highest = _highest_level(state, r"decoder\.up_blocks\.(\d+)\.")
    turned = {_turn_levels(key, r"decoder\.up_blocks\.(\d+)\.", highest): value for key, value in state.items()}
    return _renamed_back(turned, _TAMING + _PARTS)


def to_llamagen(state: Mapping[str, Tensor]) -> State:
    """genlab's encoder and decoder under the names of LlamaGen."""
    return _renamed_back(state, _LLAMAGEN + _PARTS)


def read_settings(state: Mapping[str, Tensor], where: str, groups: int = 32) -> dict[str, Any]:
    """The fields of `AutoencoderSettings`, read from names and shapes (in genlab's naming).

    Args:
        groups: of the group normalisation, which leaves no trace in the weights.

    Raises:
        CheckpointError: no convolutional autoencoder, or parts are missing.
    """
    try:
        width = state["encoder.conv_in.weight"].shape[0]
        channels = state["decoder.conv_in.weight"].shape[1]
        levels = 1 + _highest_level(state, r"encoder\.down_blocks\.(\d+)\.")
        outputs = [state[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(levels)]
    except KeyError as error:
        raise CheckpointError(f"{where}: no convolutional autoencoder, or a part of one: {error} is missing") from error
    if wrong := [count for count in outputs if count % width]:
        raise CheckpointError(
            f"{where}: a level has {wrong[0]} channels, no multiple of the first convolution's {width}"
        )
    encoder = _levels(state, r"encoder\.down_blocks\.(\d+)\.attentions\.")
    decoder = sorted(levels - 1 - level for level in _levels(state, r"decoder\.up_blocks\.(\d+)\.attentions\."))
    return {
        "width": width,
        "multipliers": tuple(count // width for count in outputs),
        "blocks": 1 + _highest_level(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "attention": tuple(encoder),
        "decoder_attention": None if decoder == encoder else tuple(decoder),
        "mid_attention": "encoder.mid_block.attentions.0.to_q.weight" in state,
        "channels": channels,
        "groups": groups,
    }


def _rename(name: str, rules: _Rules) -> str:
    for theirs, ours in rules:
        if match := re.search(r"(\d+)".join(map(re.escape, theirs.split("{}"))), name):
            name = name[: match.start()] + ours.format(*match.groups()) + name[match.end() :]
    return name


def _renamed_back(state: Mapping[str, Tensor], rules: _Rules) -> State:
    back = tuple((ours, theirs) for theirs, ours in reversed(rules))
    return {
        _rename(key, back): value[:, :, None, None] if _PROJECTION.search(key) else value
        for key, value in state.items()
    }


def _turn_levels(key: str, pattern: str, highest: int) -> str:
    """Count the decoder's levels from the other end."""
    match = re.match(pattern, key)
    if match is None:
        return key
    return f"{key[: match.start(1)]}{highest - int(match[1])}{key[match.end(1) :]}"


def _levels(state: Iterable[str], pattern: str) -> list[int]:
    """The numbers that the pattern's group takes, sorted."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def _highest_level(state: Iterable[str], pattern: str) -> int:
    """-1 for none."""
    return max(_levels(state, pattern), default=-1)
