"""Work that can be watched and stopped: an order being filled in a thread of its own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Event, Lock, Thread

from torch import Tensor

from genlab.core import contracts
from genlab.core.contracts import to_uint8
from genlab.core.generator import Generator
from genlab.sampling import sample_images
from genlab.studio.models import Models
from genlab.studio.orders import Order

BATCH = 64  # as `genlab sample` by default: the same batches give the same images to the last bit
_PAUSE = 0.15  # seconds between previews, at least


class Cancelled(Exception):
    """The work was stopped on request."""


@dataclass(frozen=True)
class Frame:
    """How far a job is."""

    done: float = 0.0
    """Share of the work, 0 to 1."""
    left: float | None = None
    """Seconds, estimated."""
    images: dict[int, Tensor] = field(default_factory=dict)
    """uint8 [3,R,R] by index: the finished images, and what the present ones promise."""
    finished: int = 0
    """How many images are final; all of them in the last frame."""


class Job:
    """One order on its way. `frames` does the work and tells how it goes; `cancel` stops it within a step."""

    def __init__(self, order: Order):
        self.order = order
        self._stop = Event()
        self._news = Condition()
        self._frame: Frame | None = None
        self._over = False
        self._error: BaseException | None = None
        self._begun = 0.0
        self._next_preview = 0.0

    def cancel(self) -> None:
        """Stop at the next step. Harmless at any time and from any thread."""
        self._stop.set()

    def frames(self, models: Models) -> Iterator[Frame]:
        """The newest frame whenever there is one, and at last the complete one. Closing this stops the work.

        Raises:
            Cancelled: `cancel` was called.
            GenlabError: the generator cannot be loaded, or its samples are of no use.
        """
        Thread(target=self._work, args=(models,), daemon=True, name="genlab-job").start()
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._frame is not None or self._over)
                    frame, self._frame = self._frame, None
                if frame is not None:
                    yield frame
                elif self._error is not None:
                    raise self._error
                else:
                    return
        finally:
            self.cancel()

    def _work(self, models: Models) -> None:
        try:
            with models.borrowed(self.order.entry) as generator:
                self._fill(generator)
        except BaseException as error:  # handed over to whoever reads the frames
            self._error = error
        with self._news:
            self._over = True
            self._news.notify_all()

    def _fill(self, generator: Generator) -> None:
        order, total = self.order, len(self.order.labels)
        ready: dict[int, Tensor] = {}
        self._begun = time.monotonic()

        def on_step(event: contracts.Event) -> None:
            self._check()
            now = time.monotonic()
            if now < self._next_preview or event.step == event.steps:
                return
            present = to_uint8(generator.decode_preview(event)).cpu()
            images = ready | dict(enumerate(present, start=len(ready)))
            self._publish((len(ready) + len(present) * event.step / event.steps) / total, images, len(ready))
            spent = time.monotonic() - now  # a slow decoder is asked less often
            self._next_preview = now + spent + max(_PAUSE, 3 * spent)

        self._check()
        parts = sample_images(generator, order.labels, order.seed, range(total), BATCH, order.settings, on_step)
        for indices, images in parts:
            ready |= dict(zip(indices, images))
            self._check()
            self._publish(len(ready) / total, dict(ready), len(ready))

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _publish(self, done: float, images: dict[int, Tensor], finished: int) -> None:
        elapsed = time.monotonic() - self._begun
        frame = Frame(done, elapsed / done - elapsed, images, finished)
        with self._news:
            self._frame = frame
            self._news.notify_all()


class Jobs:
    """The jobs under way, by the session that asked for them."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, set[Job]] = defaultdict(set)
        self._lock = Lock()

    @contextmanager
    def entered(self, session: str, job: Job) -> Iterator[Job]:
        """While the block runs, `cancel(session)` reaches the job."""
        with self._lock:
            self._jobs[session].add(job)
        try:
            yield job
        finally:
            with self._lock:
                self._jobs[session].discard(job)
                if not self._jobs[session]:
                    del self._jobs[session]

    def cancel(self, session: str) -> int:
        """Stop all jobs of a session; how many there were."""
        with self._lock:
            jobs = list(self._jobs.get(session, ()))
        for job in jobs:
            job.cancel()
        return len(jobs)
