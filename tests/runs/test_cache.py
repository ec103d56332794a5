"""Caching in real processes: killed, continued by two, and compared with an uninterrupted one."""

import signal

from runs_support import ROOT, contents, interrupted, two

from genlab.commands.cache import Options, cache, verify

CONFIG = ROOT / "configs/photos/dit_flow.yaml"
IMAGES = ["data.count=300", "data.size=16", "data.flip=true"]


def test_killed_and_continued_by_two_processes_is_byte_for_byte_the_same(tmp_path):
    folder = tmp_path / "killed"
    words = ["genlab/cache.py", CONFIG, *IMAGES, "-o", folder, "--shard-size", "60"]
    interrupted(12, signal.SIGKILL, folder, *words, expect=-signal.SIGKILL)
    assert list(folder.iterdir()) and not (folder / "index.json").exists()
    two(*words)
    cache(CONFIG, IMAGES, tmp_path / "straight", Options(shard_size=60))
    assert contents(folder) == contents(tmp_path / "straight")
    assert verify(CONFIG, IMAGES, folder) == 0
