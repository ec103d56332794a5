"""Pretrained weights: at a given path, in the cache, or downloaded; always checked against their SHA-256."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genlab.core.errors import WeightsUnavailable

_TIMEOUT_SECONDS = 10.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightsFile:
    """One public file of weights."""

    what: str
    """The network, in words."""
    file: str
    """Its name in the cache, `torch.hub.get_dir()/checkpoints`."""
    url: str
    sha256: str
    """The checksum, or its first digits where the publisher states only those."""
    megabytes: int
    option: str = "--weights"
    """The option by which the user gives a path."""
    instead: str = ""
    """What to do without these weights."""

    @property
    def cached(self) -> Path:
        """Its place in the cache, whether it is there or not."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    def locate(self, path: Path | None = None, allow_unofficial: bool = False) -> FoundWeights:
        """The file at `path`, else the cached one, else a download.

        Args:
            path: the user's own copy; never modified.
            allow_unofficial: accept other weights at `path` than the published ones (results are named differently).

        Raises:
            WeightsUnavailable: no such file, another checksum, or offline without a cached copy.
        """
        if path is not None and not path.is_file():
            raise WeightsUnavailable(f"{self.what}: there is no file {path}; it should be {self.file} from {self.url}")
        place = path or self.cached
        if path is None and not place.is_file():
            _download(self, place)
        checksum = sha256(place)
        official = checksum.startswith(self.sha256)
        if not official and not (path is not None and allow_unofficial):
            remedy = "delete it to download it again" if path is None else f"download it again from {self.url}"
            raise WeightsUnavailable(
                f"{self.what}: {place} has SHA-256 {checksum[:16]}..., expected {self.sha256[:16]}...; it is truncated "
                f"or holds other weights: {remedy}"
            )
        return FoundWeights(place, checksum, official)

    def missing(self, reason: str) -> WeightsUnavailable:
        """The error that says how to get the file."""
        ways = [
            f"give a copy with {self.option} PATH",
            f"put it into {self.cached.parent}",
            *([self.instead] if self.instead else []),
        ]
        return WeightsUnavailable(
            f"{self.what}: {self.file} ({self.megabytes} MB, {self.url}) is not cached and cannot be downloaded "
            f"({reason}). Either {', or '.join(ways)}."
        )


@dataclass(frozen=True)
class FoundWeights:
    """A weights file on this disk."""

    path: Path
    checksum: str
    official: bool

    def read(self) -> dict[str, Tensor]:
        """The state dict, on the CPU; nothing in the file is executed.

        Raises:
            WeightsUnavailable: a file that is no state dict.
        """
        try:
            if self.path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(self.path)
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise WeightsUnavailable(f"{self.path}: not a readable weights file ({reason})") from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise WeightsUnavailable(f"{self.path}: holds no plain state dict (name -> tensor)")
        return state

    def load_into(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Fills `network`, which may be on the meta device, with `state`; every tensor must fit.

        Raises:
            WeightsUnavailable: weights of another architecture.
        """
        try:
            network.load_state_dict({key: _as_float32(value) for key, value in state.items()}, assign=True)
        except RuntimeError as error:
            lines = " ".join(str(error).split())
            raise WeightsUnavailable(f"{self.path}: weights of another network ({lines[:300]}...)") from error


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(weights: WeightsFile, target: Path) -> None:
    """Fetches the file into the cache, whole or not at all. One attempt: without a network it fails within seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise weights.missing("HF_HUB_OFFLINE is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(weights.url, timeout=_TIMEOUT_SECONDS) as response,
            tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", delete=False) as part,
        ):
            try:
                while chunk := response.read(_CHUNK):
                    part.write(chunk)
                part.flush()
                if not sha256(Path(part.name)).startswith(weights.sha256):
                    raise weights.missing("what came has another checksum")
                Path(part.name).replace(target)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise weights.missing(str(getattr(error, "reason", error))) from error
