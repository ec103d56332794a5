"""A job as a page follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from genlab.studio.store import Job, State, Store

FOLLOWING: dict[str, Any] = {"concurrency_id": "following", "concurrency_limit": None}
"""Arguments of every event that only follows a job: any number at once, for the workers' queue is elsewhere."""
_LOOK = 0.04  # seconds between looks
_QUEUE_LOOKS = 20  # every so many looks the place in the queue is counted


@dataclass(frozen=True)
class News:
    """How a job stands."""

    state: State
    frame: dict[str, Any] | None = None
    """The newest of a running job."""
    ahead: int = 0
    """Jobs before a waiting one."""


async def watch(store: Store, job: Job) -> AsyncIterator[News]:
    """News whenever there are some; the last one's state is over. Who stops to watch does not stop the job."""
    last: tuple[Any, ...] = ()
    ahead, look = 0, 0
    while True:
        state = store.state(job)
        if state.status == "queued" and look % _QUEUE_LOOKS == 0:
            ahead = store.ahead(job)
        stamp = store.stamp(job) if state.status == "running" else None
        now = (state.status, stamp, ahead)
        if now != last:
            last = now
            yield News(state, store.frame(job) if stamp else None, ahead)
        if state.over:
            return
        look += 1
        await asyncio.sleep(_LOOK)
