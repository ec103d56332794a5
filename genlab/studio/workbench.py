"""What all panels share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genlab.studio.catalog import Catalog
from genlab.studio.jobs import Jobs
from genlab.studio.models import Models
from genlab.studio.orders import Limits
from genlab.studio.outputs import Outputs


@dataclass(frozen=True)
class Workbench:
    """Generators to choose from, models in memory, jobs under way, finished files, and how much one may ask for."""

    catalog: Catalog
    models: Models = field(default_factory=Models)
    jobs: Jobs = field(default_factory=Jobs)
    outputs: Outputs = field(default_factory=Outputs)
    limits: Limits = field(default_factory=Limits)

    @property
    def queue(self) -> dict[str, Any]:
        """Arguments of every event that uses the device: one at a time, in the order they came."""
        return {"concurrency_id": f"device {self.models.device}", "concurrency_limit": 1}
