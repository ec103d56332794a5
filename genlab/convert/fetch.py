"""Published files from the Hugging Face hub, as `genlab convert` names them: owner/name, or owner/name:file."""

from __future__ import annotations

import re
from pathlib import Path

from genlab.core.errors import CheckpointError

_HUB = re.compile(r"(?:hub:)?(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./-]+))?")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_FOLDER = ["*.json", "*.safetensors"]
"""What of a diffusers folder is read."""


def fetch(source: str) -> Path:
    """The file or folder `source` on this disk; names of the hub are downloaded where they are not cached.

    A repository without a file's name is a diffusers folder, or has one file of weights.

    Raises:
        CheckpointError: neither here nor to be had.
    """
    match = _HUB.fullmatch(source)
    if Path(source).exists() or match is None:
        if not Path(source).exists():
            raise CheckpointError(f"{source}: no such file or folder (on the hub: owner/name:file)")
        return Path(source)
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, file = match["repository"], match["file"]
    try:
        if file is None:
            names = HfApi().list_repo_files(repository)
            if {"model_index.json", "config.json"} & set(names):
                return Path(snapshot_download(repository, allow_patterns=_FOLDER))
            file = _only_weights(names, repository)
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: no such file here, and not to be had from the hub ({reason})") from error


def _only_weights(names: list[str], repository: str) -> str:
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    if len(weights) != 1:
        found = ", ".join(weights[:6]) or "none"
        raise CheckpointError(f"{repository}: say which file, as {repository}:FILE (weights there: {found})")
    return weights[0]
