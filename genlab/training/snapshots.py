"""Snapshots of power-function averages, from which the average of any width is made after training.

    averages/000123456/               (images seen)
        ROLE.power-0.05.safetensors   parameters in half precision, buffers as they are

"Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al., CVPR 2024 (arXiv 2312.02696),
section 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.files import whole_folder
from genlab.core.weights import read_header, read_tensors
from genlab.training import power_ema
from genlab.training.checkpoint import list_checkpoints


@dataclass(frozen=True)
class Snapshot:
    """One average at one time."""

    role: str
    std: float
    updates: int
    """Of the role; its time."""
    state: Mapping[str, Tensor]
    averaged: Set[str]
    """Which of `state` are averages; the others are buffers."""


def save(root: Path, images: int, snapshots: Iterable[Snapshot]) -> None:
    """Write `root/IMAGES`, whole or not at all; the same images again replace it."""
    with whole_folder(root / f"{images:09d}") as folder:
        for each in snapshots:
            tensors = {name: v.half() if name in each.averaged else v for name, v in each.state.items()}
            copied = [name for name in tensors if name not in each.averaged]
            header = {"std": repr(each.std), "updates": str(each.updates), "copied": json.dumps(copied)}
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                folder / f"{each.role}.power-{each.std:g}.safetensors",
                header,
            )


def reconstruct(root: Path, role: str, std: float) -> tuple[dict[str, Tensor], int]:
    """The average of width `std` of a role at its last snapshot, in float32, and the images seen by then.

    Raises:
        CheckpointError: no snapshots, or damaged ones.
    """
    files = [file for folder in list_checkpoints(root) for file in sorted(folder.glob(f"{role}.power-*.safetensors"))]
    if not files:
        raise CheckpointError(
            f"{root}: no snapshots of {role!r} to make another average of; train with training.ema_power=[0.05, 0.10]"
        )
    try:
        headers = [read_header(file) for file in files]
        times, stds = [int(header["updates"]) for header in headers], [float(header["std"]) for header in headers]
        copied = set(json.loads(headers[-1]["copied"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{root}: a snapshot is damaged or not genlab's ({error})") from error
    shares = power_ema.combination(times, stds, times[-1], std)
    return power_ema.combine(_each(files), shares.tolist(), copied), int(files[-1].parent.name)


def _each(files: Iterable[Path]) -> Iterator[Mapping[str, Tensor]]:
    for file in files:
        yield read_tensors(file)
