"""Kill -9 at random moments, resume, and compare with an uninterrupted run, bit for bit.

    python benchmarks/resume.py [--kills 20]

Prints one JSON line, and exits with 1 unless every tensor of the last checkpoint is equal.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SIZE = ["training.images=64_000", "training.checkpoint_every=640", "training.preview_every=64_000", "network.depth=2"]


def start(runs: Path, name: str) -> subprocess.Popen:
    """A run of the digits recipe, saving after every five steps; in a process group of its own."""
    command = [sys.executable, "genlab/train.py", "configs/digits/dit_flow.yaml", f"name={name}", *SIZE, "--runs", runs]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def last_tensors(runs: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint."""
    folder = max((runs / name / "checkpoints").glob("[0-9]*"))
    return {
        f"{file.stem}/{key}": tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()
    }


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs, unfinished = Path(folder), 0
        assert start(runs, "straight").wait() == 0
        for _ in range(options.kills):
            process = start(runs, "killed")
            before = set((runs / "killed" / "checkpoints").glob("*"))
            while process.poll() is None and set((runs / "killed" / "checkpoints").glob("*")) <= before:
                time.sleep(0.002)  # until it writes: kills before that would only test the start
            time.sleep(random.random() * 0.5)
            unfinished += any((runs / "killed" / "checkpoints").glob(".unfinished-*"))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert start(runs, "killed").wait() == 0
        expected, got = last_tensors(runs, "straight"), last_tensors(runs, "killed")
        equal = got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in expected)
    print(json.dumps({"kills": options.kills, "killed_while_saving": unfinished, "equal_bit_for_bit": equal}))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
