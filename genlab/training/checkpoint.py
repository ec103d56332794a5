"""Checkpoints: a folder of safetensors and one JSON file, whole or absent, from which a run continues bit for bit.

    checkpoints/000123456/            (images seen)
        state.json                    format, versions, counters, and the size of every file
        ROLE.safetensors              weights
        ROLE.ema-0.999.safetensors    one for each average
        ROLE.optimizer.safetensors    `PARAMETER/KEY` -> tensor

Random numbers need no saving: they are functions of the seed and of the images seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.files import remove_unfinished, sync, whole_folder

FORMAT = 1
_STATE = "state.json"


def save(root: Path, images: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write `root/IMAGES`, atomically. `tensors` maps file stems to named tensors; `state` is JSON-able."""
    folder = root / f"{images:09d}"
    with whole_folder(folder) as temporary:
        for stem, group in tensors.items():
            save_file({name: value.contiguous() for name, value in group.items()}, temporary / f"{stem}.safetensors")
        sizes = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        text = json.dumps({"format": FORMAT, "images": images, **state, "files": sizes}, indent=1)
        (temporary / _STATE).write_text(text, encoding="utf-8")
    return folder


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, after checking that all of its files are there in full.

    Raises:
        CheckpointError: missing, truncated or not a genlab checkpoint.
    """
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files, version = state["files"], state["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint (it has no {_STATE})") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{folder / _STATE}: damaged or not genlab's ({error})") from None
    if version != FORMAT:
        raise CheckpointError(f"{folder}: checkpoint format {version}, this genlab reads {FORMAT}")
    for name, size in files.items():
        file = folder / name
        got = file.stat().st_size if file.exists() else None
        if got != size:
            found = "is missing" if got is None else f"is truncated ({got} of {size} bytes)"
            raise CheckpointError(f"{file}: {found}; use an earlier checkpoint")
    return state


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is absent or damaged.
    """
    file = folder / f"{stem}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); use an earlier checkpoint") from error


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, oldest first, sound or not."""
    folders = [folder for folder in root.glob("[0-9]*") if folder.is_dir() and folder.name.isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name))


def latest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint below `root` (None if there is none), and what was wrong with newer ones."""
    problems: list[str] = []
    for folder in reversed(list_checkpoints(root)):
        try:
            state = read_state(folder)
            for name in state["files"]:
                read_header(folder / name)
            return folder, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; reads the header only. Raises CheckpointError if it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); use an earlier checkpoint") from error


def prune(root: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep_last` checkpoints, and those that crossed a multiple of `keep_every` images."""
    folders = list_checkpoints(root)
    milestones: set[Path] = set()
    if keep_every:
        first_after: dict[int, Path] = {}
        for folder in folders:
            first_after.setdefault(int(folder.name) // keep_every, folder)
        milestones = {folder for index, folder in first_after.items() if index > 0}
    for folder in folders[:-keep_last]:
        if folder not in milestones:
            doomed = folder.rename(folder.parent / f".unfinished-{folder.name}")  # a kill leaves no half checkpoint
            shutil.rmtree(doomed)
    remove_unfinished(root)
    sync(root)


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


def match_identity(expected: Mapping[str, Any], got: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError, naming the settings that differ, unless the checkpoint is of the same run."""
    names = [name for name in sorted({*expected, *got}) if expected.get(name) != got.get(name)]
    if names:
        rows = [f"{name} was {got.get(name)!r}, is {expected.get(name)!r}" for name in names[:4]]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise CheckpointError(
            f"{folder}: saved with other settings ({'; '.join(rows)}{more})."
            " Restore them, or start another run with name=NEW_NAME"
        )
