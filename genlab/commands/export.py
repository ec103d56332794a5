"""`genlab export`: write a run's export again from its newest sound checkpoint."""

from __future__ import annotations

from pathlib import Path

from genlab import pretrained
from genlab.commands import students, tokenizers
from genlab.core.errors import ConfigError


def export(run: Path, width: float | None = None) -> Path:
    """The export's folder, of a generator or a tokenizer.

    Args:
        width: of an average to be made of the run's snapshots, in place of the run's own.

    Raises:
        CheckpointError: nothing to export, or no snapshots.
        ConfigError: a width that no average has, or one for a tokenizer.
    """
    if width is not None and not 0 < width < 0.288:
        raise ConfigError(f"--ema: a width is above 0 and below 0.288, got {width:g}; 0.05 to 0.2 are usual")
    if students.holds_students(run):
        if width is not None:
            raise ConfigError("--ema: students are exported with their own averages; leave it out")
        return students.export(run)
    if not (run / tokenizers.DESCRIPTION).is_file():
        return pretrained.export(run, width)
    if width is not None:
        raise ConfigError("--ema: averages are made anew for generators only; leave it out")
    return tokenizers.export(run)
