"""An evaluation that somebody asked for, checked."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.core.errors import ConfigError, DataError, GenlabError
from genlab.evaluation.protocols import Protocol
from genlab.evaluation.published import PROTOCOLS
from genlab.evaluation.references import find_published
from genlab.studio.catalog import Entry, read_entry
from genlab.studio.orders import LARGEST_SEED, Limits, merge, whole

MOST_SAMPLES = 50_000
FOLDER = "evaluation"
"""Below a run: where `genlab evaluate` puts its reports, too."""
_DIGITS, _TOKENIZER = "digits", "tokenizer"


@dataclass(frozen=True)
class ScoreOrder:
    """`samples` images of a generator to be scored under a protocol."""

    entry: Entry
    protocol: Protocol
    samples: int
    seed: int
    metrics: tuple[str, ...]
    """Some of the protocol's."""
    changes: dict[str, Any]
    """Sampling settings other than the run's and the protocol's, in plain values."""

    @classmethod
    def of(cls, wants: Mapping[str, Any]) -> ScoreOrder:
        """The order that said `wants`. Raises GenlabError if its generator is no longer there."""
        entry = read_entry(wants["source"], Path(wants["run"]))
        return place(entry, *(wants[key] for key in ("protocol", "samples", "seed", "metrics", "changes")))

    def wants(self) -> dict[str, Any]:
        """The order in plain values, from which `of` makes it again in another process."""
        plain = {"samples": self.samples, "seed": self.seed, "metrics": list(self.metrics), "changes": self.changes}
        run = {"source": self.entry.source, "run": str(self.entry.run.resolve())}
        return {**run, "protocol": self.protocol.name, **plain}

    def folder(self, jobs: Path) -> Path:
        """Where its report goes: always the same for the same order, so that one that was stopped goes on."""
        told = [self.entry.images, self.seed, self.metrics, self.changes]
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        return report_folders(self.entry, jobs)[0] / f"{self.protocol.name}-{self.samples}-{name}"

    def words(self, target: str) -> list[str]:
        """What `genlab` is called with to score `target`, which is this generator."""
        words = ["evaluate", target, *(f"{key}={json.dumps(value)}" for key, value in self.changes.items())]
        words += ["--protocol", self.protocol.name, "--samples", str(self.samples), "--seed", str(self.seed)]
        if self.metrics != self.protocol.metrics:
            words += ["--metrics", ",".join(self.metrics)]
        if not self.protocol.reference and not _says_its_data(self.entry):
            words += ["--against", self.entry.data]
        return words

    def command(self) -> str:
        """The command that gives the same scores."""
        return shlex.join(["genlab", *self.words(self.entry.source)])


def report_folders(entry: Entry, jobs: Path) -> list[Path]:
    """Where the reports on a generator lie, first where new ones go: into the run, if that is a folder of the user's.

    Args:
        jobs: the folder of the studio's jobs, below which the reports on other generators go.
    """
    own, ours = entry.run / FOLDER, jobs / FOLDER / entry.id
    local = Path(entry.source).resolve() == entry.run.resolve() and os.access(entry.run, os.W_OK)
    return [own, ours] if local else [ours, own]


def protocols_for(entry: Entry) -> list[Protocol]:
    """The protocols that can score a generator's images, first the one that suits its data."""
    first = _DIGITS if entry.data == _DIGITS else "standard"
    fitting = [
        protocol
        for name, protocol in PROTOCOLS.items()
        if name != _TOKENIZER
        and (name != _DIGITS or entry.data == _DIGITS)
        and protocol.image_size in (None, entry.image_size)
    ]
    return sorted(fitting, key=lambda protocol: protocol.name != first)


def place(entry: Entry, protocol: Any, samples: Any, seed: Any, metrics: Any, changes: Any) -> ScoreOrder:
    """The order to score `samples` images of `seed` by a protocol's name; None: the protocol's own metrics.

    Raises:
        GenlabError: anything that is not a sensible value, or no reference to compare with, in words for who asked.
    """
    offered = {fitting.name: fitting for fitting in protocols_for(entry)}
    if not isinstance(protocol, str) or protocol not in offered:
        raise ConfigError(f"protocol: {str(protocol)[:40]!r} does not fit this run; there are {', '.join(offered)}")
    chosen = offered[protocol]
    count = whole(samples, "images to score", 2, MOST_SAMPLES)
    settings = merge(entry.sampling, _mapping(changes)).model_dump(mode="json")
    whole(settings.get("steps") or 1, "steps", 1, Limits().steps)
    kept = {key: settings[key] for key in changes or {}}
    _check_reference(entry, chosen)
    return ScoreOrder(entry, chosen, count, whole(seed, "seed", 0, LARGEST_SEED), _metrics(metrics, chosen), kept)


def _mapping(changes: Any) -> Mapping[str, Any]:
    if not isinstance(changes, Mapping | None):
        raise ConfigError("settings: a mapping of names to values is wanted")
    return changes or {}


def _metrics(wanted: Any, protocol: Protocol) -> tuple[str, ...]:
    """Those of the protocol that are wanted, in its order."""
    if wanted is None:
        return protocol.metrics
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted:
        raise ConfigError("scores: choose at least one")
    unknown = next((name for name in wanted if name not in protocol.metrics), None)
    if unknown is not None:
        offered = ", ".join(protocol.metrics)
        raise ConfigError(f"scores: {str(unknown)[:40]!r} is none of this protocol's; it has {offered}")
    return tuple(name for name in protocol.metrics if name in wanted)


def _check_reference(entry: Entry, protocol: Protocol) -> None:
    """There is something to compare with."""
    if protocol.reference:
        if find_published(protocol.reference) is None:
            raise DataError(
                f"protocol {protocol.name} needs {protocol.reference[0]} from {protocol.reference_url}:"
                " put it into ./references"
            )
    elif not _says_its_data(entry) and entry.data != _DIGITS:
        raise GenlabError(f"{entry.name}: an export does not hold its data; score the run that it comes from")


def _says_its_data(entry: Entry) -> bool:
    return (entry.run / "config.yaml").is_file()
