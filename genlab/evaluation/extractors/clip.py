"""CLIP ViT-L/14@336 (Radford et al. 2021), whose image embeddings CMMD (Jayasumana et al. 2024) compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.public_weights import FoundWeights, WeightsFile
from genlab.evaluation.extractors.base import Extractor, Precision
from genlab.evaluation.resize import centre_square, pil

_REPOSITORY = "openai/clip-vit-large-patch14-336"
_REVISION = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
_FILE = "pytorch_model.bin"
WEIGHTS = WeightsFile(
    what="CLIP ViT-L/14@336",
    file="clip-vit-large-patch14-336-c6032c2e.bin",
    url=f"https://huggingface.co/{_REPOSITORY}/resolve/{_REVISION}/{_FILE}",
    sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    megabytes=1712,
    instead="score offline with --extractor efflite0 (another backbone, named otherwise)",
)
_SIDE = 336
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_VIT_L_14_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": _SIDE,
    "patch_size": 14,
}


class Clip(Extractor):
    """uint8 images of any size -> centre square, Pillow bicubic 336, /255, CLIP's mean and std -> image embedding.

    Layer `embedding` [B, 768], of unit length, as CMMD's kernel takes it.
    """

    family = "clip"
    mean: Tensor
    std: Tensor
    dimensions: ClassVar = {"embedding": 768}
    feature_layer = "embedding"
    resize = "centre crop to a square, Pillow antialiased bicubic to 336x336, /255, CLIP mean and std"

    def __init__(
        self,
        found: FoundWeights,
        layers: Sequence[str] | None = None,
        precision: Precision = "strict",
        architecture: dict[str, Any] | None = None,
    ):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        with torch.device("meta"):
            network: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**(architecture or _VIT_L_14_336)))
        embeddings = network.vision_model.embeddings
        embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
        wanted = network.state_dict().keys()
        state = {key: value for key, value in found.read().items() if key in wanted}  # the file has a text tower too
        found.load_into(network, state)
        super().__init__(network, found, layers, precision)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 3, 336, 336]."""
        pixels = pil(centre_square(images), _SIDE, "bicubic").float().div_(255.0)
        return (pixels - self.mean) / self.std

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"embedding": F.normalize(self.network(inputs).image_embeds.float(), dim=1)}


def load(path: Path | None, layers: Sequence[str] | None, precision: Precision, allow_unofficial: bool) -> Clip:
    """The extractor with weights from `path` (the file, or a folder in Hugging Face's layout), a cache or the hub.

    A folder's `config.json` decides the architecture, so that other CLIPs can be used (and are named otherwise).
    """
    if path is not None and path.is_dir():
        return Clip(WEIGHTS.locate(_weights_of(path), allow_unofficial), layers, precision, _architecture_of(path))
    return Clip(WEIGHTS.locate(path or _hub_copy(), allow_unofficial), layers, precision)


def _hub_copy() -> Path | None:
    """The file in Hugging Face's own cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(_REPOSITORY, _FILE, revision=_REVISION)
    return Path(cached) if isinstance(cached, str) else None


def _weights_of(folder: Path) -> Path:
    converted = folder / "model.safetensors"
    return converted if converted.is_file() else folder / _FILE


def _architecture_of(folder: Path) -> dict[str, Any] | None:
    from transformers import CLIPVisionConfig

    if not (folder / "config.json").is_file():
        return None
    config: dict[str, Any] = CLIPVisionConfig.from_pretrained(folder, local_files_only=True).to_dict()
    return config
