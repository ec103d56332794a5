"""Golden files: inputs, official parameters and outputs of one official computation, in one .safetensors file.

Names: `param.<official key>`, `in.<name>`, `mid.<name>`, `out.<name>`, `ref64.<name>`; the metadata holds `system`,
`case`, `config` (JSON) and `about`. A system's module offers

    CASES: dict[str, Callable[[Golden], Iterator[Check]]]

whose functions recompute every output of a file of that case, whatever its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genlab.core.errors import CheckpointError


@dataclass(frozen=True)
class Golden:
    """One golden file, in memory."""

    path: Path
    system: str
    case: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: str | Path) -> Golden:
        """Read a golden file. Raises CheckpointError for anything that is not one."""
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not a readable .safetensors file ({error})") from error
        try:
            config = json.loads(metadata.get("config", "{}"))
        except ValueError as error:
            raise CheckpointError(f"{path}: no golden file, its config is not JSON ({error})") from error
        system = metadata.get("system") or config.get("system")
        case = metadata.get("case") or config.get("case") or metadata.get("kind") or config.get("kind")
        if not system or not case:
            raise CheckpointError(f"{path}: no golden file, its metadata names no system and case")
        return cls(path, system, case, config, tensors)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.` ("param", "in", "mid", "out"), without the prefix."""
        return {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + ".")}

    def __getitem__(self, name: str) -> Tensor:
        """One tensor by its full name, such as `golden["in.x"]`."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}")
        return self.tensors[name]


@dataclass(frozen=True)
class Check:
    """A recomputed tensor to be compared with the file's tensor of the same full name (`out.x`, `mid.x`)."""

    name: str
    value: Tensor
    tolerance: float
    """Allowed max abs error as a share of the stored tensor's max abs value; 0 means exactly equal."""
    absolute: bool = False
    """The tolerance is an absolute error instead."""
    skipped: str = ""
    """Why this output is not compared (another implementation's known fault, ...); `value` is then ignored."""


@dataclass(frozen=True)
class Result:
    """One printed line of `genlab verify`."""

    name: str
    error: float
    scale: float
    tolerance: float
    ok: bool
    note: str = ""


Case: TypeAlias = Callable[[Golden], Iterator[Check]]


def compare(golden: Golden, check: Check) -> Result:
    """The outcome of one check; shapes, NaN positions and values must agree."""
    if check.skipped:
        return Result(check.name, 0.0, 0.0, check.tolerance, True, f"not compared: {check.skipped}")
    expected = golden[check.name]
    got = check.value.detach().cpu()
    if got.shape != expected.shape:
        note = f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        return Result(check.name, float("inf"), 0.0, check.tolerance, False, note)
    if got.numel() == 0:
        return Result(check.name, 0.0, 0.0, check.tolerance, True)
    got, want = got.double(), expected.double()
    same = (got == want) | (got.isnan() & want.isnan())
    error = torch.where(same, 0.0, (got - want).abs()).nan_to_num(nan=float("inf")).max().item()
    finite = want[want.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    allowed = check.tolerance if check.absolute else check.tolerance * scale
    return Result(check.name, error, scale, check.tolerance, error <= allowed)


def run(golden: Golden, case: Case) -> list[Result]:
    """Recompute a file's outputs. Every `out.*` must be covered: one that is not is reported as a failure.

    What the file does not hold is not compared: intermediates, runs and parts of a loss differ between files.
    """
    results = [compare(golden, check) for check in case(golden) if check.name in golden.tensors]
    seen = {result.name for result in results}
    missing = sorted(name for name in golden.tensors if name.startswith("out.") and name not in seen)
    return results + [Result(name, float("inf"), 0.0, 0.0, False, "not recomputed") for name in missing]
