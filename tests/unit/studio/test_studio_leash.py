"""Commands of a worker end with it, even when it is killed."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

CHILD = """
import sys, time
from genlab.studio.work.leash import hold
hold(int(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""
PARENT = """
import os, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # as `run_command` does
held, ours = os.pipe()
words = [sys.executable, "-c", sys.argv[1], str(held), sys.argv[2]]
child = subprocess.Popen(words, pass_fds=[held], start_new_session=True, stdout=subprocess.PIPE)
os.close(held)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_child_of_a_killed_parent_ends(number):
    words = [sys.executable, "-c", PARENT, CHILD, str(int(number))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(words, **pipes) as parent:
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 20
    while runs(child):
        assert time.monotonic() < limit, "it goes on"
        time.sleep(0.02)


def runs(process):
    """Whether it goes on; one that has ended may not have been collected yet."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False
