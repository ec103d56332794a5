"""Every golden file of the systems that genlab covers, recomputed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from genlab.convert.goldens import Golden
from genlab.convert.verify import SYSTEMS, verify

ROOT = Path(__file__).resolve().parents[2]


def _goldens() -> Path:
    shared = ROOT.parent / "shared" / "goldens"
    return shared if shared.is_dir() else ROOT / "tests" / "goldens"


def _known(path: Path) -> bool:
    """Whether the file's system and case are covered; reads the header only."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    metadata = {**json.loads(metadata.get("config", "{}")), **metadata}
    module, case = SYSTEMS.get(metadata.get("system")), metadata.get("case") or metadata.get("kind")
    return module is not None and case in importlib.import_module(module).CASES


FILES = [path for path in sorted(_goldens().glob("*/*.safetensors")) if _known(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path):
    results = verify(path)
    failing = [
        f"{r.name}: {r.error:.3g} of {r.scale:.3g}, tolerance {r.tolerance:g} {r.note}" for r in results if not r.ok
    ]
    assert results
    assert not failing, "\n".join(failing)


def _copy(golden: Golden, path: Path, **change) -> Path:
    tensors = {**golden.tensors, **change.pop("tensors", {})}
    metadata = {"system": golden.system, "case": golden.case, "config": json.dumps(golden.config), **change}
    save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, path, metadata)
    return path


@pytest.fixture
def golden():
    path = _goldens() / "sit" / "forward_no_sigma.safetensors"
    if not path.exists():
        pytest.skip("no golden file of the SiT forward here")
    return Golden.load(path)


def test_a_perturbed_parameter_is_noticed(golden, tmp_path):
    name = "param.blocks.1.mlp.fc1.weight"
    path = _copy(golden, tmp_path / "g.safetensors", tensors={name: golden[name] * 1.001})
    assert not all(result.ok for result in verify(path))


def test_an_output_that_nobody_recomputes_is_noticed(golden, tmp_path):
    path = _copy(golden, tmp_path / "g.safetensors", tensors={"out.unheard_of": golden["in.t"].clone()})
    failing = [result for result in verify(path) if not result.ok]
    assert [result.name for result in failing] == ["out.unheard_of"]


def test_a_missing_parameter_is_one_failing_line(golden, tmp_path):
    path = _copy(golden, tmp_path / "g.safetensors", tensors={"param.final_layer.linear.bias": None})
    (result,) = verify(path)
    assert not result.ok
    assert "final_layer.linear.bias" in result.note


@pytest.mark.parametrize("change", [{"system": "nobody"}, {"case": "nothing"}])
def test_an_unknown_system_or_case_is_one_failing_line(golden, tmp_path, change):
    (result,) = verify(_copy(golden, tmp_path / "g.safetensors", **change))
    assert not result.ok
    assert "not supported" in result.note
