"""Files from the Hugging Face hub: only kinds that cannot execute."""

from __future__ import annotations

import re
from pathlib import Path

from genlab.core.errors import CheckpointError


def is_repository(word: str) -> bool:
    """Whether `word` has the form "owner/name" of a hub repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", word) is not None and not word.startswith(("runs/", "./", "../"))


def download(repository: str) -> Path:
    """The local folder of a repository's weights, JSON and card, downloaded where they are not cached.

    Raises:
        CheckpointError: not to be had, with the hub's reason.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.safetensors", "*.json", "README.md"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{repository}: no such folder here, and not to be had from the hub ({error})") from error
