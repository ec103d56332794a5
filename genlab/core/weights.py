"""Weights in safetensors files: read whole, matched by name and shape, identified by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from genlab.core.errors import CheckpointError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU. Raises CheckpointError if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); use an earlier checkpoint or export again") from error


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; reads the header only. Raises CheckpointError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); use an earlier checkpoint or export again") from error


def full(value: Tensor) -> Tensor:
    """The whole of a possibly sharded tensor, on the CPU. A collective call for sharded tensors."""
    gathered = value.full_tensor() if hasattr(value, "full_tensor") else value  # DTensor
    return gathered.detach().cpu()


@torch.no_grad()
def fill(target: Tensor, source: Tensor, name: str) -> None:
    """Copy a whole tensor into a possibly sharded one. Raises CheckpointError when the shapes differ."""
    if target.shape != source.shape:
        raise CheckpointError(f"{name}: the checkpoint has shape {tuple(source.shape)}, this run {tuple(target.shape)}")
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)


def match_names(expected: Iterable[str], got: Iterable[str], where: str) -> None:
    """Raises CheckpointError, naming a few of the differences, unless both hold the same names."""
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"] if missing else []
        parts += [f"has unknown {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}"] if unknown else []
        raise CheckpointError(f"{where}: of another architecture ({'; '.join(parts)})")


def fill_all(target: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy named tensors into others of the same names. Raises CheckpointError unless names and shapes agree."""
    match_names(target, source, where)
    for name, value in target.items():
        fill(value, source[name], f"{where}: {name}")


def checksum(*modules: nn.Module) -> str:
    """16 digits of a SHA-256 over all weights and buffers that the modules save."""
    hasher = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:16]
