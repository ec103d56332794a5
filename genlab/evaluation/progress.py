"""An evaluation in progress, on disk: what a killed one continues from, with any number of processes.

    identity.json           what is evaluated; another evaluation is refused
    state-*.safetensors     one process's statistics, and which blocks of images they hold
    kept-*.safetensors      features and pictures, written once each

A process's state is replaced as a whole, so it is always that of some moment. When an evaluation goes on, its processes
take over all states, write them with what is new, then delete those taken over; killed in between, the new state holds
every block of the old ones, which are then ignored.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import remove_unfinished, whole_file, write_text

BLOCKS, TIMES = "blocks", "times"


class Progress:
    """The folder of one unfinished evaluation.

    Args:
        identity: JSON-able; all that must agree for statistics to belong together.

    Raises:
        DataError: the folder holds another evaluation's progress.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], rank: int = 0, world: int = 1):
        self.folder, self.rank, self.world = folder, rank, world
        self._own = folder / f"state-{uuid.uuid4().hex}.safetensors"
        self._taken: list[Path] = []
        text = json.dumps(identity, indent=1, sort_keys=True)
        file = folder / "identity.json"
        if file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))
            other = sorted(key for key in old.keys() | identity.keys() if old.get(key) != json.loads(text).get(key))
            if other:
                raise DataError(
                    f"{folder.parent}: holds an unfinished evaluation of other settings ({', '.join(other)});"
                    f" choose another --out, or remove {folder} to start anew"
                )
        elif rank == 0:
            write_text(file, text)
        if rank == 0:
            remove_unfinished(folder)

    def states(self) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Blocks done by anyone, sorted int64, and the states that this process takes over.

        Damaged files are left out: their blocks are done again. All processes must have asked before one saves.
        """
        found = {file: state for file in sorted(self.folder.glob("state-*.safetensors")) if (state := _read(file))}
        blocks = {file: set(state[BLOCKS].tolist()) for file, state in found.items()}
        stale = {
            a for a in found for b in found if a != b and (blocks[a] < blocks[b] or (blocks[a] == blocks[b] and a > b))
        }
        current = [file for file in found if file not in stale]
        heirs = [file for number, file in enumerate(current) if number % self.world == self.rank]
        self._taken = heirs + (sorted(stale) if self.rank == 0 else [])
        done = sorted(set().union(*(blocks[file] for file in current)))
        return torch.tensor(done, dtype=torch.int64), [found[file] for file in heirs]

    def kept(self) -> list[dict[str, Tensor]]:
        """All rows that were kept."""
        return [kept for file in sorted(self.folder.glob("kept-*.safetensors")) if (kept := _read(file))]

    def save(self, state: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
        """Write what is new, rows first: rows without a state are ignored, a state without rows would be wrong."""
        if kept:
            with whole_file(self.folder / f"kept-{uuid.uuid4().hex}.safetensors") as temporary:
                save_file({key: value.contiguous() for key, value in kept.items()}, temporary)
        with whole_file(self._own) as temporary:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        for file in self._taken:
            file.unlink(missing_ok=True)
        self._taken = []

    def clear(self) -> None:
        """Remove the folder: the evaluation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        return {}
