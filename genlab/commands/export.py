"""`genlab export`: write a run's export again from its newest sound checkpoint."""

from __future__ import annotations

from pathlib import Path

from genlab import pretrained
from genlab.commands import tokenizers


def export(run: Path) -> Path:
    """The export's folder, of a generator or a tokenizer. Raises CheckpointError."""
    return tokenizers.export(run) if (run / tokenizers.DESCRIPTION).is_file() else pretrained.export(run)
