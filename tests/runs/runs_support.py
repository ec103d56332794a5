"""Starting genlab as people do: in processes of its own, with a time limit and all its words in a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from genlab.cli import main

ROOT = Path(__file__).parents[2]
LIMIT = 400  # seconds; a start takes five, or sixty where the machine is busy
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", "--num_processes", "1"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--num_cpu_threads_per_process", "1"]

RECIPE = """
data: {name: digits}
tokenizer: {name: pixels, channels: 1}
network: {name: dit, depth: 1, width: 32, heads: 2, patch: 2}
process: {name: flow}
training:
  images: 640
  batch: 32
  lr: 1.0e-3
  ema: [0.9]
  checkpoint_every: 64
  preview_every: 320
  preview_count: 4
  log_every: 32
sampling: {sampler: rk4, steps: 2, guidance: 1.5}
expected:
  - {protocol: digits, metric: class_accuracy, value: 0.999, source: a better run, tolerance: 0.001}
"""
"""Twenty steps with ten checkpoints: a second's work."""


class Finished(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


def python(*words: str | Path, expect: int = 0) -> Finished:
    """Run Python with `words` in the repository's root; fail unless its exit code is `expect`."""
    return command([sys.executable, *words], expect)


def two(entry: str, *words: str | Path, expect: int = 0) -> Finished:
    """Run an entry on two processes."""
    return python(*TWO, entry, *words, expect=expect)


def interrupted(
    count: int, number: signal.Signals, prefix: Path, entry: str, *words: str | Path, expect: int
) -> Finished:
    """Run an entry that gets signal `number` before its `count`th use of a file whose path begins with `prefix`."""
    script = Path(__file__).with_name("interrupted.py")
    return python(script, str(count), number.name, prefix, entry, *words, expect=expect)


def command(words: Sequence[str | Path], expect: int = 0) -> Finished:
    """Run a command in the repository's root, in a process group of its own, which ends with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += f"\n(killed by the test after {LIMIT} seconds)"
    said = " ".join(map(str, words))
    assert process.returncode == expect, f"{said}\nended with {process.returncode}, not {expect}\n{out}\n{err}"
    return Finished(process.returncode, out, err)


def genlab(*words: str | Path) -> int:
    """The command line in this process, where a process of its own would show nothing more; its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


def checkpoints(run: Path) -> list[Path]:
    """Its checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("[0-9]*"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, averages, optimizer."""
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_weights(run: Path, other: Path, tolerance: float = 0.0) -> None:
    """The last checkpoints of two runs: the same images seen, and every tensor within `tolerance`."""
    ours, theirs = checkpoints(run)[-1], checkpoints(other)[-1]
    assert ours.name == theirs.name
    got, expected = tensors(ours), tensors(theirs)
    assert got.keys() == expected.keys() and len(got) > 20
    far = [name for name in got if not torch.allclose(got[name], expected[name], rtol=0, atol=tolerance)]
    assert not far, f"{far[:3]} of {len(far)} tensors differ"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
