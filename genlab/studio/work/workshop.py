"""What a worker can do: each kind of job, and what their work shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genlab.studio.models import Models
from genlab.studio.work.comparing import compare
from genlab.studio.work.editing import edit
from genlab.studio.work.generating import generate
from genlab.studio.work.scoring import score
from genlab.studio.work.tokenizing import reconstruct
from genlab.studio.work.training import train
from genlab.studio.worker import Running

KINDS: dict[str, Callable[[Running, Models], dict[str, Any]]] = {
    "generate": generate,
    "edit": edit,
    "compare": compare,
    "train": train,
    "score": score,
    "reconstruct": reconstruct,
}


class Workshop:
    """One device with the models that are loaded on it."""

    def __init__(self, device: str):
        self._models = Models(torch.device(device))

    def do(self, running: Running) -> dict[str, Any]:
        """Do a job; what came of it, JSON-able.

        Raises:
            Stopped: on request.
            GenlabError: it cannot be done, in words for who asked.
        """
        return KINDS[running.job.kind](running, self._models)
