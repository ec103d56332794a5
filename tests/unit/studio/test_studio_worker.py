"""The worker: the right images, news on the way, a stop that stops, and an end whatever happens."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from studio_runs import write_run

from genlab.pretrained import from_pretrained
from genlab.sampling import sample_images
from genlab.studio import worker
from genlab.studio.catalog import Catalog
from genlab.studio.models import Models
from genlab.studio.orders import Limits, Order, place
from genlab.studio.store import Store
from genlab.studio.work import generating
from genlab.studio.work.workshop import Workshop
from genlab.studio.worker import Workers, page_open, perform, serve


@pytest.fixture
def entry(tmp_path):
    write_run(tmp_path / "runs" / "tiny")
    (entry,) = Catalog([tmp_path / "runs"]).refresh().entries.values()
    return entry


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "studio")


@pytest.fixture
def workshop():
    return Workshop("cpu")


def ask(store, entry, per_class=2, **changes):
    order = place(entry, [1, 2], per_class, 7, changes, Limits())
    return store.submit("generate", "me", entry.name, order.wants())


def do(store, workshop):
    job = store.claim("cpu")
    perform(store, job, workshop)
    return store.state(job)


def frames(store, monkeypatch):
    """All frames that are shown from now on."""
    seen = []
    show = Store.show
    monkeypatch.setattr(generating, "pause", lambda *_: 0.0)  # every step is shown
    monkeypatch.setattr(Store, "show", lambda self, job, frame: (seen.append(frame), show(self, job, frame)))
    return seen


def test_files_are_what_the_command_would_make(store, entry, workshop):
    job = ask(store, entry, per_class=40, steps=2)
    state = do(store, workshop)
    assert state.status == "done" and len(state.result["files"]) == 80 and state.ended >= state.begun > 0
    order = Order.of(job.wants)
    parts = sample_images(from_pretrained(entry.folder), order.labels, 7, range(80), 64, order.settings)
    expected = torch.cat([part.images for part in parts]).permute(0, 2, 3, 1)
    made = np.stack([np.asarray(Image.open(job.results / name)) for name, _ in state.result["files"]])
    assert np.array_equal(made, expected.numpy())
    assert (job.results / state.result["archive"]).stat().st_size > 0


def test_news_come_before_the_end(store, entry, workshop, monkeypatch):
    seen = frames(store, monkeypatch)
    ask(store, entry, steps=60, sampler="rk4")
    do(store, workshop)
    assert len(seen) == 59 and seen[0]["finished"] == 0 and len(seen[0]["pictures"]) == 4
    shares = [frame["done"] for frame in seen]
    assert shares == sorted(shares) and all(frame["left"] >= 0 for frame in seen)


def test_stop_stops_within_a_step(store, entry, workshop, monkeypatch):
    seen = frames(store, monkeypatch)
    job = ask(store, entry, steps=1000)
    checks = []
    check = worker.Running.check

    def stopping(self):
        checks.append(None)
        if len(checks) == 5:
            store.stop(job)
        check(self)

    monkeypatch.setattr(worker.Running, "check", stopping)
    assert do(store, workshop).status == "stopped"
    assert len(checks) == 5 and len(seen) < 5 and list(job.results.iterdir()) == []


def test_failures_say_why_and_leave_the_worker_able(store, entry, workshop):
    weights = entry.folder / "network.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(b"\xff" * 100)
    ask(store, entry)
    state = do(store, workshop)
    assert state.status == "failed" and "cannot be read" in state.words
    weights.write_bytes(sound)
    ask(store, entry, steps=1)
    assert do(store, workshop).status == "done"
    entry.run.rename(entry.run.with_name("gone"))
    ask(store, entry)
    assert do(store, workshop).status == "failed"


def test_few_models_stay_loaded(tmp_path):
    models = Models(torch.device("cpu"))
    for name in "abc":
        write_run(tmp_path / name)
    entries = Catalog([tmp_path]).refresh().entries.values()
    for entry in [*entries, *entries]:
        assert models.get(entry) is models.get(entry)
        assert len(models._loaded) <= 2


def test_a_worker_clears_up_after_one_that_was_killed(store, entry):
    ask(store, entry)
    job = store.claim("cpu")
    serve(store.root, "cpu", linger=0.0)
    assert store.state(job).status == "failed" and "killed or out of memory" in store.state(job).words


def test_a_killed_worker_is_replaced_and_jobs_go_on(store, entry):
    workers = Workers(store.root, ("cpu",))
    with page_open(store.root):
        long = ask(store, entry, per_class=100, steps=1000)
        workers.ensure()
        wait(lambda: store.state(long).status == "running")
        (first,) = workers._started
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        short = ask(store, entry, steps=1)
        workers.ensure()
        wait(lambda: store.state(short).over)
        workers.ensure()
        (second,) = workers._started
        assert store.state(long).status == "failed" and store.state(short).status == "done"
    second.kill()
    second.wait()


def wait(ready):
    limit = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.05)
