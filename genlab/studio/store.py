"""Jobs on disk: what somebody asked for, how far it is, and what came of it.

    ROOT/jobs/ID/      order.json (what is wanted), state.json (how it stands), frame.json (the newest news), stop,
                       given/ (files that came with the order, as long as it waits or runs)
    ROOT/results/ID/   finished files; the only folder that pages can read
    ROOT/queue/ID      an empty file while the job waits; who renames it to running/ID.DEVICE has taken the job
    ROOT/served/OWNER  touched whenever a job of that visitor begins

Pages write orders and read the rest, one worker per device does the work. Either may end and start again at any time:
all that they know of each other is here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from genlab.core.errors import GenlabError
from genlab.core.files import write_text

Status: TypeAlias = Literal["queued", "running", "done", "failed", "stopped"]
_ID = re.compile(r"[0-9]{20}-[0-9a-f]{24}")
_GIVEN = "given"
_REMEMBERED = 4096  # orders; what is not remembered is read again


@dataclass(frozen=True)
class Job:
    """What somebody asked for."""

    id: str
    kind: str
    owner: str
    """Who asked; jobs of different owners take turns."""
    title: str
    wants: dict[str, Any]
    """All that the worker needs to know, JSON-able; a page has checked it."""
    folder: Path
    results: Path

    def given(self, file: str) -> Path:
        """A file that came with the order; gone once the job is over."""
        return self.folder / _GIVEN / file


@dataclass(frozen=True)
class State:
    """How a job stands."""

    status: Status = "queued"
    words: str = ""
    """Why it failed, in plain words."""
    begun: float = 0.0
    ended: float = 0.0
    """Seconds since 1970."""
    result: dict[str, Any] = field(default_factory=dict)
    """What came of it, JSON-able; paths of files are names below `Job.results`."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("done", "failed", "stopped")


class Store:
    """The jobs below one folder.

    Args:
        root: the folder; made if there is none.
        waiting: how many jobs may wait at once, and how many of one owner.
        largest: bytes of results that are kept; `age`: seconds; `most`: finished jobs. The newest is kept in any case.
    """

    def __init__(
        self,
        root: Path,
        waiting: tuple[int, int] = (128, 32),
        largest: int = 512 * 2**20,
        age: float = 24 * 3600.0,
        most: int = 2000,
    ):
        self.root = root.resolve()
        self._waiting, self._largest, self._age, self._most = waiting, largest, age, most
        self._orders: dict[str, Job] = {}
        self._finished: dict[str, tuple[float, int]] = {}
        for part in ("jobs", "results", "queue", "running", "served"):
            (self.root / part).mkdir(parents=True, exist_ok=True)

    @property
    def results(self) -> Path:
        """The folder of all finished files."""
        return self.root / "results"

    @cached_property
    def secret(self) -> str:
        """Random words of this store, the same for all who use it, that no page gets to see."""
        file = self.root / "secret"
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return file.read_text()
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_hex(16))
        return file.read_text()

    def submit(
        self, kind: str, owner: str, title: str, wants: Mapping[str, Any], files: Mapping[str, bytes] | None = None
    ) -> Job:
        """A new job at the end of the queue. Raises GenlabError if too many wait already.

        Args:
            files: what the work needs besides `wants`, by names of our own; it finds them with `Job.given`.
        """
        queue = self._queued()
        mine = sum(job.owner == owner for job in queue)
        if len(queue) >= self._waiting[0] or mine >= self._waiting[1]:
            raise GenlabError(
                f"{len(queue)} jobs are waiting, {mine} of them yours: no more are taken now; try again later"
            )
        name = f"{time.time_ns():020d}-{secrets.token_hex(12)}"  # in the order of time, and not to be guessed
        job = self._place(name, kind, owner, title, dict(wants))
        job.folder.mkdir()
        job.results.mkdir()
        (job.folder / _GIVEN).mkdir()
        for file, content in (files or {}).items():
            job.given(file).write_bytes(content)
        order = {"kind": kind, "owner": owner, "title": title, "wants": job.wants, "at": time.time()}
        _replace(job.folder / "order.json", order)
        (self.root / "queue" / name).touch()
        return job

    def get(self, name: object) -> Job:
        """The job of an id. Raises GenlabError for anything else."""
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise GenlabError("no such job")
        if name not in self._orders:
            order = _read(self.root / "jobs" / name / "order.json")
            if order is None:
                raise GenlabError("no such job: it was removed after a while, as all finished ones are")
            if len(self._orders) >= _REMEMBERED:  # of a page they may be long gone: workers remove them
                self._orders.clear()
            self._orders[name] = self._place(name, *(order[key] for key in ("kind", "owner", "title", "wants")))
        return self._orders[name]

    def jobs(self, owner: str | None = None) -> list[Job]:
        """All jobs, or those of one owner, newest first."""
        found = []
        for name in sorted(_names(self.root / "jobs"), reverse=True):
            try:
                job = self.get(name)
            except GenlabError:  # not complete yet, or being removed
                continue
            if owner in (None, job.owner):
                found.append(job)
        return found

    def state(self, job: Job) -> State:
        """How it stands."""
        told = _read(job.folder / "state.json")
        return State(**told) if told else State()

    def frame(self, job: Job) -> dict[str, Any] | None:
        """The newest news of a running job, as `show` was given it."""
        return _read(job.folder / "frame.json")

    def stamp(self, job: Job) -> int | None:
        """Changes whenever there is a new frame; None as long as there is none."""
        try:
            return (job.folder / "frame.json").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def ahead(self, job: Job) -> int:
        """How many jobs run or will begin before this one, if it waits."""
        queue = [waiting.id for waiting in self._queued()]
        return len(_names(self.root / "running")) + (queue.index(job.id) if job.id in queue else 0)

    def stop(self, job: Job) -> None:
        """Stop it, whether it waits or runs. Harmless at any time."""
        try:
            (self.root / "queue" / job.id).unlink()
        except FileNotFoundError:
            (job.folder / "stop").touch()
        else:
            self.finish(job, State("stopped", ended=time.time()))

    def stopping(self, job: Job) -> bool:
        """Whether somebody wants it stopped."""
        return (job.folder / "stop").exists()

    def show(self, job: Job, frame: Mapping[str, Any]) -> None:
        """Put out the news of a running job."""
        _replace(job.folder / "frame.json", frame)

    def claim(self, device: str) -> Job | None:
        """The job whose turn it is, which is then the caller's to do; None if none waits."""
        for job in self._queued():
            try:
                (self.root / "queue" / job.id).rename(self.root / "running" / f"{job.id}.{device}")
            except FileNotFoundError:  # another worker was quicker, or it was stopped
                continue
            self._served(job.owner).touch()
            _replace(job.folder / "state.json", asdict(State("running", begun=time.time())))
            return job
        return None

    def finish(self, job: Job, state: State) -> None:
        """Say how it ended. What is old or too much is removed."""
        write_text(job.folder / "state.json", json.dumps(asdict(state)))
        self._finished.pop(job.id, None)
        for mark in (self.root / "running").glob(f"{job.id}.*"):
            mark.unlink()
        (job.folder / "frame.json").unlink(missing_ok=True)
        shutil.rmtree(job.folder / _GIVEN, ignore_errors=True)
        self._tidy(job)

    def abandoned(self, device: str) -> list[Job]:
        """Jobs that a worker of this device had begun; the only worker of the device asks, so nobody does them now."""
        return [self.get(mark.stem) for mark in (self.root / "running").glob(f"*.{device}")]

    def _queued(self) -> list[Job]:
        """Waiting jobs in the order in which they will begin: owners take turns, who waited longest for one first."""
        waiting = [self.get(name) for name in sorted(_names(self.root / "queue"))]
        before: Counter[str] = Counter()
        ranked = []
        for job in waiting:
            ranked.append((before[job.owner], _touched(self._served(job.owner)), job.id, job))
            before[job.owner] += 1
        return [row[-1] for row in sorted(ranked, key=lambda row: row[:-1])]

    def _served(self, owner: str) -> Path:
        return self.root / "served" / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def _place(self, name: str, kind: str, owner: str, title: str, wants: dict[str, Any]) -> Job:
        return Job(name, kind, owner, title, wants, self.root / "jobs" / name, self.root / "results" / name)

    def _tidy(self, newest: Job) -> None:
        """Remove finished jobs that are too old, too many, or with whose results there would be too much."""
        names = sorted(_names(self.root / "jobs"), reverse=True)
        self._finished = {name: self._finished[name] for name in names if name in self._finished}
        room, places = self._largest - _size(newest.results), self._most - 1
        for name in names:
            if name == newest.id or (ending := self._ending(name)) is None:
                continue
            room, places = room - ending[1], places - 1
            if room < 0 or places < 0 or time.time() - ending[0] > self._age:
                shutil.rmtree(self.root / "results" / name, ignore_errors=True)
                shutil.rmtree(self.root / "jobs" / name, ignore_errors=True)
                self._orders.pop(name, None)
        for mark in (self.root / "served").iterdir():
            if time.time() - _touched(mark) > self._age:
                mark.unlink(missing_ok=True)

    def _ending(self, name: str) -> tuple[float, int] | None:
        """When a job ended, and the bytes of its results, which no longer change; None if it goes on."""
        if name not in self._finished:
            state = State(**(_read(self.root / "jobs" / name / "state.json") or {}))
            if state.over:
                self._finished[name] = (state.ended, _size(self.root / "results" / name))
        return self._finished.get(name)


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def _replace(file: Path, content: Mapping[str, Any]) -> None:
    """As `write_text` without its wait for the disk: news that a crash may lose."""
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(content))
    temporary.replace(file)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _touched(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
