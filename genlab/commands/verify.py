"""`genlab verify`: a line for every output of every golden file."""

from __future__ import annotations

from pathlib import Path

from genlab.convert.verify import expand
from genlab.convert.verify import verify as recompute
from genlab.core.errors import GenlabError


def verify(paths: list[Path]) -> int:
    """Print the comparison of every file; 0 if all agree, else 1."""
    files = list(expand(paths))
    if not files:
        raise GenlabError("no .safetensors file there to verify")
    failures = 0
    for file in files:
        print(file)
        for row in recompute(file):
            failures += not row.ok
            verdict = "ok" if row.ok else "FAILED"
            numbers = f"error {row.error:9.2e}  scale {row.scale:9.2e}  tol {row.tolerance:7.1e}"
            print(f"  {row.name:<44} {numbers}  {verdict} {row.note}")
    print(f"{len(files)} files, {failures} outputs failed" if failures else f"{len(files)} files, all agree")
    return 1 if failures else 0
