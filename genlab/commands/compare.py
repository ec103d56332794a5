"""`genlab compare`: saved reports side by side, in one table and one page."""

from __future__ import annotations

from pathlib import Path

from genlab.evaluation.comparison import gather, print_comparison, write_comparison


def compare(targets: list[Path], out: Path) -> None:
    """Print and write the comparison of all reports in `targets`: report files, their folders, or run folders.

    Raises:
        GenlabError: no reports there.
    """
    reports = gather(targets)
    print_comparison(reports)
    print(f"comparison in {write_comparison(out, reports)}")
