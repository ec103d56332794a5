"""Caching in real processes: killed, continued by two, and compared with an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from genlab.commands.cache import Options, cache, verify

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/photos/dit_flow.yaml"
IMAGES = ["data.count=1500", "data.size=64", "data.flip=true"]


def start(folder: Path, *launcher: str) -> subprocess.Popen:
    command = [*launcher, "genlab/cache.py", str(CONFIG), *IMAGES, "-o", str(folder), "--shard-size", "60"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def test_killed_and_continued_by_two_processes_is_byte_for_byte_the_same(tmp_path):
    killed = start(tmp_path / "killed", sys.executable)
    while killed.poll() is None and len(list((tmp_path / "killed").glob("*.safetensors"))) < 2:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/index.json").exists(), "too quick to be killed: more images are needed"

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    continued = start(tmp_path / "killed", *launcher)
    output = continued.communicate(timeout=300)[0].decode()
    assert continued.returncode == 0, output

    cache(CONFIG, IMAGES, tmp_path / "straight", Options(shard_size=60))
    straight, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("straight", "killed")
    )
    assert straight == other
    assert verify(CONFIG, IMAGES, tmp_path / "killed") == 0
