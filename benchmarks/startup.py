"""Time to the help text and to the first training step, and peak memory of the digits recipe.

python benchmarks/startup.py
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(*command: str) -> float:
    """Wall time of a command that must succeed."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    """Print one JSON line."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    with tempfile.TemporaryDirectory() as runs:
        train = ["genlab/train.py", "configs/digits/dit_flow.yaml", "--runs", runs]
        rows = {
            "help_s": seconds(sys.executable, "-c", "from genlab.cli import main; main(['--help'])"),
            "one_step_run_s": seconds(*launch, *train, "name=one", "training.images=128", "training.preview_count=1"),
            "digits_5000_images_s": seconds(*launch, *train, "name=some", "training.images=5_000"),
        }
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = {key: round(value, 2) for key, value in rows.items()} | {"peak_memory_gib": round(peak, 2)}
    print(
        json.dumps({**rows, "machine": platform.processor() or platform.machine(), "python": platform.python_version()})
    )


if __name__ == "__main__":
    main()
