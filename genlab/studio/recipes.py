"""The recipes that the studio can train, and which of their values a page may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import genlab
from genlab import config as configs
from genlab.core.errors import ConfigError

FIRST = "digits/dit_flow.yaml"
_FREE = ("training", "sampling", "network", "process", "seed", "name", "reconstruction")
"""Sections that name no file, folder or address."""

AnyRun: TypeAlias = configs.RunConfig | configs.TokenizerRunConfig


@dataclass(frozen=True)
class Recipes:
    """All YAML files below `folder`, named by their path from there."""

    folder: Path

    @classmethod
    def here(cls) -> Recipes:
        """Those of the present folder, else those that came with genlab."""
        return cls(
            next(
                (f for f in (Path("configs"), Path(genlab.__file__).parents[1] / "configs") if f.is_dir()),
                Path("configs"),
            )
        )

    def names(self) -> list[str]:
        """The digits first, for they train anywhere."""
        found = (file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*.yaml"))
        return sorted(found, key=lambda name: (name != FIRST, not name.startswith("digits/"), name))

    def path(self, name: object) -> Path:
        """The file of a recipe. Raises ConfigError for anything that `names` does not hold."""
        if not isinstance(name, str) or name not in self.names():
            raise ConfigError("no such recipe here: choose one from the list")
        return self.folder / name

    def changed(
        self, name: object, changes: str
    ) -> tuple[Path, list[str], configs.RunConfig | configs.TokenizerRunConfig]:
        """A recipe with `section.key=value` lines: its file, the lines, and what they give.

        Raises:
            ConfigError: something invalid, or a value that could name a file, which a page may not.
        """
        path, lines = self.path(name), overrides(changes)
        return path, lines, configs.load_run(path, lines, trust=False)


def overrides(changes: str) -> list[str]:
    """The lines of a text. Raises ConfigError for a section that a page may not change."""
    lines = [line.strip() for line in changes.splitlines() if line.strip()]
    if len(changes) > 10_000:
        raise ConfigError("changes: too long")
    for line in lines:
        key = line.partition("=")[0].strip()
        if key.partition(".")[0] not in _FREE:
            raise ConfigError(
                f"{key[:60]!r}: a page may change {_listed(_FREE)}; for the rest write a recipe of your own"
            )
    return lines


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
