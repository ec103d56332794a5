"""The runs on disk as their logs tell of them, also of those that somebody trains outside the studio."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from genlab.training.checkpoint import list_checkpoints

_TAIL = 16_384  # bytes at the end of a log that surely hold a whole line
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it was built
_QUIET = 120.0  # seconds without a line after which a run counts as stopped


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    name: str
    folder: Path
    system: str
    """What is trained."""
    images: int
    total: int
    loss: float | None
    speed: float | None
    """Images per second."""
    memory: float | None
    """GiB, the peak."""
    active: bool
    """Whether it wrote a line lately and is not finished."""

    @property
    def left(self) -> float | None:
        """Seconds to the end, estimated."""
        return (self.total - self.images) / self.speed if self.active and self.speed else None


def read_runs(roots: Sequence[Path]) -> list[RunState]:
    """The runs in these folders, those under way first, then by their last line."""
    folders = [folder for root in roots for folder in ([root] if _is_run(root) else _children(root)) if _is_run(folder)]
    seen = sorted(((_changed(folder), folder) for folder in folders), reverse=True)
    states = [_read(folder, changed) for changed, folder in seen]
    return sorted(states, key=lambda state: not state.active)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line for text in lines if (line := _line(text)) is not None]


def sample_grids(folder: Path) -> list[Path]:
    """The pictures that the run made on its way, oldest first."""
    return sorted((folder / "samples").glob("*.png"))


def _children(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [child for child in root.iterdir() if not child.name.startswith(".") and not child.is_symlink()]


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _changed(folder: Path) -> float:
    log = folder / "log.jsonl"
    return (log if log.exists() else folder / "config.yaml").stat().st_mtime


def _read(folder: Path, changed: float) -> RunState:
    system, total = _told(folder / "config.yaml", (folder / "config.yaml").stat().st_mtime)
    line = _last_line(folder / "log.jsonl")
    saved = max((int(checkpoint.name) for checkpoint in list_checkpoints(folder / "checkpoints")), default=0)
    images = max(int(line.get("images", 0)), saved)  # the last images of a run come after its last line
    loss = next((value for key, value in line.items() if key == "loss" or key.endswith("/loss")), None)
    active = images < total and time.time() - changed < _QUIET
    return RunState(
        folder.name, folder, system, images, total, loss, line.get("images_per_second"), line.get("memory_gib"), active
    )


@lru_cache(1024)
def _told(config: Path, changed: float) -> tuple[str, int]:
    """What a run trains, and on how many images."""
    try:
        tree = yaml.load(config.read_text(encoding="utf-8"), _LOADER)
        parts = [tree[part]["name"] for part in ("network", "process") if part in tree] or [tree["tokenizer"]["name"]]
        return " · ".join(parts), -(-int(tree["training"]["images"]) // tree["training"]["batch"]) * tree["training"][
            "batch"
        ]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return "unknown", 0


def _last_line(log: Path) -> dict[str, Any]:
    """The last line of the training itself, not of scores."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _TAIL, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found = (line for text in reversed(lines) if (line := _line(text)) is not None and "images_per_second" in line)
    return next(found, {})


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # the half line of a killed process
        return None
    return (
        {k: v for k, v in line.items() if not isinstance(v, float) or math.isfinite(v)}
        if isinstance(line, dict)
        else None
    )
