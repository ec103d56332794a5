"""Checkpoints: a folder of safetensors and one JSON file, whole or absent, from which a run continues bit for bit.

    checkpoints/000123456/            (images seen)
        state.json                    format, versions, counters, and the size of every file
        ROLE.safetensors              weights
        ROLE.ema-0.999.safetensors    one for each average (power-0.05 for one of a power function, target for losses)
        ROLE.optimizer.safetensors    `PARAMETER/KEY` -> tensor

Random numbers need no saving: they are functions of the seed and of the images seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.files import remove_unfinished, sync, whole_folder
from genlab.core.weights import read_header

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


def average_stem(role: str, average: float | str | None) -> str:
    """The file stem of a role's average: a decay, "power-" and a width, or None for the weights themselves."""
    match average:
        case None:
            return role
        case str():
            return f"{role}.{average}"
        case _:
            return f"{role}.ema-{average:g}"


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


def match_identity(expected: Mapping[str, Any], got: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError, naming the settings that differ, unless the checkpoint is of the same run."""
    empty: tuple[object, ...] = (None, [], 0.0)  # what a setting is that an older checkpoint does not know yet
    pairs = {name: (expected.get(name), got.get(name)) for name in sorted({*expected, *got})}
    names = [name for name, (a, b) in pairs.items() if a != b and not (a in empty and b in empty)]
    if names:
        rows = [f"{name} was {got.get(name)!r}, is {expected.get(name)!r}" for name in names[:4]]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise CheckpointError(
            f"{folder}: saved with other settings ({'; '.join(rows)}{more})."
            " Restore them, or start another run with name=NEW_NAME"
        )
