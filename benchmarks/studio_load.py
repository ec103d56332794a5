"""The studio under load: page start, the first image, many users at once, and what 500 generations leave behind.

python benchmarks/studio_load.py RUN [--users 30] [--generations 500] [--runs 200]

Prints one JSON line. Of times on a busy machine those of the processor, `..._cpu_s`, say most.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client

ROOT = Path(__file__).parents[1]
STEPS = {"steps": 4}


@contextmanager
def studio(runs: Path, temporary: Path) -> Iterator[tuple[str, float, subprocess.Popen]]:
    """The page over `runs`, its address, the seconds until it answered, and its process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "app.py", str(runs), "--port", str(port)]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(temporary)}
    begun = time.perf_counter()
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if "studio at" not in process.stdout.readline():
            raise SystemExit("the studio did not start")
        try:
            yield f"http://127.0.0.1:{port}", time.perf_counter() - begun, process
        finally:
            process.send_signal(signal.SIGINT)
            for lock in runs.glob(".studio/worker-*.lock"):
                os.kill(int(lock.read_text()), signal.SIGTERM)


def start_with_many(run: Path, count: int, folder: Path) -> dict[str, float]:
    """Seconds until the page is served over `count` runs, to its first list of them, and to a second one."""
    for number in range(count):
        shutil.copytree(run / "export", folder / f"run{number:03d}" / "export", copy_function=os.link)
        shutil.copy(run / "config.yaml", folder / f"run{number:03d}")
    with studio(folder, folder / "temporary") as (address, start, process):
        worked = sum(psutil.Process(process.pid).cpu_times()[:2])
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
        first, second = (timed(client, "/runs")[0] for _ in range(2))
    return {
        "runs": count,
        "page_start_s": start,
        "page_start_cpu_s": worked,
        "first_list_s": first,
        "refresh_s": second,
    }


def timed(client: Client, endpoint: str, *given: Any) -> tuple[float, Any]:
    """Seconds and answer of a request."""
    begun = time.perf_counter()
    answer = client.predict(*given, api_name=endpoint)
    return time.perf_counter() - begun, answer


def first_image(client: Client, run: str) -> float:
    """Seconds from the order to the first picture of what forms, at the default settings, of a model that is loaded."""
    client.predict(run, [0], 1, 0, STEPS, api_name="/generate")
    begun = time.perf_counter()
    job = client.predict(run, list(range(10)), 1, 0, {}, api_name="/submit")
    while client.predict(job, api_name="/job")["done"] == 0.0:
        pass
    return time.perf_counter() - begun


def many_users(address: str, users: int, each: int, run: str, downloads: Path) -> dict[str, float]:
    """How many of all requests were answered with the labels that were asked for, and how long they took."""

    def use(user: int) -> list[float]:
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 120}, download_files=downloads / str(user))
        seconds = []
        for turn in range(each):
            spent, made = timed(client, "/generate", run, [user % 10], 2, 100 * user + turn, STEPS)
            assert made["labels"] == [user % 10] * 2 and len(made["images"]) == 2
            seconds.append(spent)
        client.close()
        return seconds

    begun = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        spent = sorted(second for seconds in pool.map(use, range(users)) for second in seconds)
    whole = time.perf_counter() - begun
    return {"users": users, "answered": len(spent), "median_s": spent[len(spent) // 2], "all_s": whole}


def growth(address: str, run: str, generations: int, processes: dict[str, psutil.Process]) -> dict[str, float]:
    """Memory in MiB after a tenth of the generations and after all of them; every tenth has a new visitor."""
    found: dict[str, float] = {"generations": generations}
    for seed in range(generations):
        if seed % 10 == 0:
            client = Client(address, verbose=False, httpx_kwargs={"timeout": 120}, download_files=False)
        client.predict(run, [seed % 10], 1, seed, STEPS, api_name="/generate")
        if seed + 1 in (generations // 10, generations):
            when = "early" if seed + 1 < generations else "late"
            found |= {f"{name}_{when}_mib": p.memory_info().rss / 2**20 for name, p in processes.items()}
    return found


def size(folder: Path) -> float:
    """MiB of its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.run.parent) as folder:  # links work within one disk
        root = Path(folder)
        told = start_with_many(options.run, options.runs, root / "many")
        shutil.copytree(options.run / "export", root / "one" / "run" / "export", copy_function=os.link)
        with studio(root / "one", root / "temporary") as (address, _, process):
            client = Client(address, verbose=False, httpx_kwargs={"timeout": 120}, download_files=False)
            run = client.predict(api_name="/runs")[0]["id"]
            told["first_image_s"] = first_image(client, run)
            told |= many_users(address, options.users, 3, run, root / "downloads")
            worker = int(next((root / "one").glob(".studio/worker-*.lock")).read_text())
            watched = {"page": psutil.Process(process.pid), "worker": psutil.Process(worker)}
            told |= growth(address, run, options.generations, watched)
            told |= {"results_mib": size(root / "one" / ".studio"), "temporary_mib": size(root / "temporary")}
    print(json.dumps({key: round(value, 2) for key, value in told.items()}))


if __name__ == "__main__":
    main()
