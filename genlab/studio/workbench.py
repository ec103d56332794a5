"""What all panels share."""

from __future__ import annotations

from dataclasses import dataclass, field

from genlab.studio.catalog import Catalog
from genlab.studio.orders import Limits
from genlab.studio.store import Store
from genlab.studio.worker import Workers


@dataclass(frozen=True)
class Workbench:
    """Generators to choose from, jobs and who does them, and how much one may ask for."""

    catalog: Catalog
    store: Store
    workers: Workers
    limits: Limits = field(default_factory=Limits)
