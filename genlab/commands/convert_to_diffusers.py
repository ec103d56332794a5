"""The way out of `genlab convert`: exports as folders of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genlab import pretrained
from genlab.commands.convert import check_free
from genlab.convert import autoencoders, dit
from genlab.core.contracts import Tokenizer, TrainableTokenizer
from genlab.core.errors import CheckpointError
from genlab.core.files import whole_folder, write_text
from genlab.networks.dit import DiT
from genlab.tokenization import storage
from genlab.tokenization.kl import KL

_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def to_diffusers(source: str, out: Path) -> None:
    """Write a generator with a plain DiT as diffusers' DiTPipeline, or a KL tokenizer as its AutoencoderKL.

    A generator whose tokenizer diffusers does not have gives the transformer alone.

    Raises:
        CheckpointError: diffusers has no such network.
        ConfigError: `out` holds something else.
    """
    check_free(out)
    if (folder := _tokenizer_folder(source)) is not None:
        tokenizer = storage.load_tokenizer(folder)
        with whole_folder(out) as temporary:
            _save_autoencoder(tokenizer, temporary)
        print(f"AutoencoderKL -> {out}")
        return
    generator = pretrained.from_pretrained(source)
    if not isinstance(generator.network, DiT):
        kind = type(generator.network).__name__
        raise CheckpointError(f"{source}: a {kind}; diffusers has DiT and AutoencoderKL of what genlab has")
    parts = {"transformer": "DiTTransformer2DModel", "scheduler": "DDIMScheduler", "vae": "AutoencoderKL"}
    with whole_folder(out) as temporary:
        dit.save_diffusers(generator.network, temporary / "transformer")
        if isinstance(generator.tokenizer, TrainableTokenizer):
            (temporary / "vae").mkdir()
            _save_autoencoder(generator.tokenizer, temporary / "vae")
            write_text(temporary / "scheduler" / "scheduler_config.json", json.dumps(_SCHEDULER, indent=1))
            index: dict[str, Any] = {"_class_name": "DiTPipeline"}
            index |= {"id2label": {str(number): name for number, name in enumerate(generator.class_names)}}
            index |= {part: ["diffusers", name] for part, name in parts.items()}
            write_text(temporary / "model_index.json", json.dumps(index, indent=1))
    print(f"diffusers' DiT -> {out}; its outputs differ from genlab's, see docs/published-weights.md")


def _save_autoencoder(tokenizer: Tokenizer, folder: Path) -> None:
    config = getattr(tokenizer, "config", None)
    if not isinstance(config, KL):
        raise CheckpointError(f"diffusers' pipelines have KL tokenizers: got {type(tokenizer).__name__}")
    autoencoders.save_diffusers(config, tokenizer.state_dict(), folder)


def _tokenizer_folder(source: str) -> Path | None:
    try:
        folder = storage.find_folder(source)
        storage.read_description(folder)
    except CheckpointError:
        return None
    return folder
