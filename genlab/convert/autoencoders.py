"""Published tokenizer checkpoints -> a genlab config and its weights.

Files of taming-transformers, latent diffusion, LlamaGen, MAR, MaskGIT and RQ-VAE, and folders of diffusers. All sizes
are read from the weights. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor

from genlab.convert import multiscale_tokenizers, vq_tokenizers
from genlab.convert.autoencoder_keys import State, from_published, read_settings
from genlab.convert.checkpoint_files import find_state, read_checkpoint
from genlab.core.errors import CheckpointError
from genlab.core.settings import Settings
from genlab.core.weights import match_names
from genlab.tokenization.deep_compression import DeepCompression
from genlab.tokenization.kl import KL
from genlab.tokenization.kl import PRESETS as KL_PRESETS

Loaded: TypeAlias = tuple[Any, State]
"""A tokenizer's config, and the state dict of what it builds."""

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.", "quantizer.")
_WRAPPERS = ("module.", "_orig_mod.", "first_stage_model.")


@dataclass(frozen=True)
class Family:
    """Checkpoints that are alike."""

    matches: Callable[[State], bool]
    """Whether a state dict, under its published names, is of this family."""
    convert: Callable[[State, str, int], Loaded]
    """State under its published names, the file's name for messages, and the groups -> config and weights."""


def load_tokenizer(path: str | Path, family: str | None = None, groups: int = 32) -> Loaded:
    """Read a published tokenizer.

    Args:
        path: a .ckpt, .pt, .pth, .bin or .safetensors file, or a diffusers folder (or a pipeline's, which has vae/).
        family: one of FAMILIES; default: what the names of the weights tell. Ignored for folders.
        groups: of the group normalisation, which leaves no trace in the weights. Ignored for folders.

    Returns:
        (config, state): `config.build(image_size).load_state_dict(state)` is the tokenizer.

    Raises:
        CheckpointError: absent, truncated, of another architecture, or incomplete.
    """
    path = Path(path)
    if path.is_dir():
        return load_diffusers(path)
    return convert_state(find_state(read_checkpoint(path), str(path)), str(path), family, groups)


def convert_state(state: Mapping[str, Tensor], where: str, family: str | None = None, groups: int = 32) -> Loaded:
    """A published state dict -> (config, state). Other weights that it holds (losses, discriminators) are left out.

    Raises:
        CheckpointError: of another architecture, or incomplete; `where` names the file in the message.
    """
    published = _tokenizer_weights(state)
    known = ", ".join(FAMILIES)
    name = family or next((name for name, candidate in FAMILIES.items() if candidate.matches(published)), None)
    if name not in FAMILIES:
        found = (
            f"no family {name!r}"
            if name
            else f"not a tokenizer that is known (it has {', '.join(list(state)[:3])} ...)"
        )
        raise CheckpointError(f"{where}: {found}; known: {known}")
    try:
        config, converted = FAMILIES[name].convert(published, where, groups)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{where}: no {name} tokenizer, or a part of one ({_reason(error)})") from error
    return _checked(config, converted, where)


def load_diffusers(folder: Path) -> Loaded:
    """Read a folder of diffusers' AutoencoderKL, VQModel or AutoencoderDC.

    Raises:
        CheckpointError: another class, incomplete or damaged.
    """
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = description["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no diffusers folder ({_reason(error)})") from error
    files = [folder / f"diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "bin")]
    if (file := next((file for file in files if file.is_file()), None)) is None:
        raise CheckpointError(f"{folder}: holds no {files[0].name}")
    state = find_state(read_checkpoint(file), str(file))
    if kind == "AutoencoderDC":
        return _deep_compression(description, state, str(folder))
    if kind not in ("AutoencoderKL", "VQModel"):
        raise CheckpointError(f"{folder}: a {kind}; AutoencoderKL, VQModel and AutoencoderDC can be converted")
    if description.get("act_fn", "silu") != "silu" or description.get("norm_type", "group") != "group":
        raise CheckpointError(f"{folder}: its activation or norm is not that of VQGAN")
    groups = description.get("norm_num_groups", 32)
    config, converted = convert_state(state, str(folder), "kl" if kind == "AutoencoderKL" else "vqgan", groups)
    if kind == "AutoencoderKL":
        config = config.model_copy(update=_standardisation(description))
    return config, converted


def save_diffusers(config: KL, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a KL tokenizer as a folder of diffusers' AutoencoderKL.

    Raises:
        CheckpointError: diffusers has no such network.
    """
    from diffusers import AutoencoderKL

    if config.multipliers[0] != 1 or config.quant_kernel > 1:
        raise CheckpointError(f"diffusers' AutoencoderKL has no multipliers {config.multipliers} or wide convolutions")
    levels = range(len(config.multipliers))
    decoder = config.attention if config.decoder_attention is None else config.decoder_attention
    scalar = len(config.mean) == len(config.std) == 1
    arguments: dict[str, Any] = {
        "block_out_channels": config.level_channels,
        "down_block_types": tuple(("", "Attn")[n in config.attention] + "DownEncoderBlock2D" for n in levels),
        "up_block_types": tuple(("", "Attn")[n in decoder] + "UpDecoderBlock2D" for n in reversed(levels)),
        "layers_per_block": config.blocks,
        "latent_channels": config.channels,
        "norm_num_groups": config.groups,
        "scaling_factor": 1.0 / config.std[0] if scalar else 1.0,
        "shift_factor": config.mean[0] if scalar and any(config.mean) else None,
        "latents_mean": None if scalar else list(config.mean) * (config.channels // len(config.mean)),
        "latents_std": None if scalar else list(config.std) * (config.channels // len(config.std)),
        "use_quant_conv": config.quant_kernel > 0,
        "use_post_quant_conv": config.quant_kernel > 0,
        "mid_block_add_attention": config.mid_attention,
    }
    network: Any = AutoencoderKL(**arguments)
    network.load_state_dict(dict(state))
    network.save_pretrained(folder)


def _kl(state: State, where: str, groups: int) -> Loaded:
    named = from_published(state)
    settings = read_settings(named, where, groups)
    moments = named["encoder.conv_out.weight"].shape[0]
    if moments != 2 * settings["channels"]:
        raise ValueError(f"the encoder has {moments} outputs, not mean and variance of {settings['channels']} channels")
    config = KL(**settings, quant_kernel=_kernel(named))
    for preset in KL_PRESETS.values():
        if preset.model_copy(update={"std": (1.0,)}) == config:
            return preset, named
    return config, named


FAMILIES: dict[str, Family] = {  # the first match decides
    "var": Family(lambda state: multiscale_tokenizers.detect(state) == "multiscale", multiscale_tokenizers.multiscale),
    "flexvar": Family(lambda state: multiscale_tokenizers.detect(state) == "flexible", multiscale_tokenizers.flexible),
    "gumbel": Family(vq_tokenizers.is_gumbel, vq_tokenizers.gumbel),
    "rq": Family(vq_tokenizers.is_residual, vq_tokenizers.residual),
    "maskgit": Family(vq_tokenizers.is_maskgit, vq_tokenizers.maskgit),
    "llamagen": Family(vq_tokenizers.is_llamagen, vq_tokenizers.llamagen),
    "vqgan": Family(vq_tokenizers.is_taming, vq_tokenizers.taming),
    "kl": Family(lambda state: "decoder.conv_in.weight" in state and not _quantizer(state), _kl),
}


def _quantizer(state: State) -> bool:
    return any(key.startswith(("quantize.", "quantizer.")) for key in state)


def _kernel(state: State) -> int:
    """Side of the convolution before the quantiser or posterior; 0: none."""
    return int(state["quant_conv.weight"].shape[-1]) if "quant_conv.weight" in state else 0


def _tokenizer_weights(state: Mapping[str, Tensor]) -> State:
    """Encoder, decoder and quantiser, without the prefixes of wrappers and of whole latent diffusion models."""
    found: State = {}
    for key, value in state.items():
        for wrapper in _WRAPPERS:
            key = key.removeprefix(wrapper)
        if key.startswith(_PARTS):
            found[key] = value
    return found


def _checked(config: Settings, state: State, where: str) -> Loaded:
    """Raises CheckpointError unless names and shapes are those of the module that the config builds."""
    settings: Any = config
    with torch.device("meta"):
        expected = settings.build(16 * settings.stride).state_dict()
    match_names(expected, state, where)
    for name, value in expected.items():
        if value.shape != state[name].shape:
            got, want = tuple(state[name].shape), tuple(value.shape)
            raise CheckpointError(f"{where}: of another architecture ({name} has shape {got}, expected {want})")
    return config, {name: state[name].to(value.dtype).contiguous() for name, value in expected.items()}


def _deep_compression(description: Mapping[str, Any], state: State, where: str) -> Loaded:
    levels = len(description.get("encoder_block_out_channels", range(6)))
    fields = {name: description[name] for name in DeepCompression.model_fields if name in description}
    for name in ("encoder_block_types", "decoder_block_types"):
        if isinstance(kind := fields.get(name, "ResBlock"), str):
            fields[name] = (kind,) * levels
    try:
        config = DeepCompression.model_validate({**fields, "std": 1.0 / description.get("scaling_factor", 1.0)})
    except ValidationError as error:
        raise CheckpointError(f"{where}: settings of AutoencoderDC that are not known ({_reason(error)})") from error
    return _checked(config, dict(state), where)


def _standardisation(description: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation from diffusers' shift and scale, for all channels or for each."""
    mean = description.get("latents_mean") or [description.get("shift_factor") or 0.0]
    std = description.get("latents_std") or [1.0]
    scale = description.get("scaling_factor") or 1.0
    return {"mean": tuple(mean), "std": tuple(value / scale for value in std)}


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(fault["msg"] for fault in error.errors())
    return (str(error) or type(error).__name__).partition("\n")[0]
