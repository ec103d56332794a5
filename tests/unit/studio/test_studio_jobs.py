"""Jobs: the right images, news on the way, and a stop that stops."""

import threading

import pytest
import torch
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.pretrained import from_pretrained
from genlab.sampling import sample_images
from genlab.studio.catalog import Catalog
from genlab.studio.jobs import Cancelled, Job, Jobs
from genlab.studio.models import Models
from genlab.studio.orders import Limits, place
from genlab.studio.outputs import Outputs


@pytest.fixture
def entry(tmp_path):
    write_run(tmp_path / "tiny")
    (entry,) = Catalog([tmp_path]).refresh().entries.values()
    return entry


@pytest.fixture
def models():
    return Models(torch.device("cpu"))


def order(entry, per_class=2, **changes):
    return place(entry, [1, 2], per_class, 7, changes, Limits())


def idle_threads():
    return not any(thread.name == "genlab-job" for thread in threading.enumerate())


def test_the_last_frame_holds_what_the_command_would_make(entry, models):
    made = order(entry, per_class=40, steps=2)
    *_, last = Job(made).frames(models)
    parts = sample_images(from_pretrained(entry.folder), made.labels, 7, range(80), 64, made.settings)
    expected = torch.cat([part.images for part in parts])
    assert last.finished == 80 and torch.equal(torch.stack([last.images[i] for i in range(80)]), expected)


def test_previews_come_before_the_end(entry, models, monkeypatch):
    monkeypatch.setattr("genlab.studio.jobs._PAUSE", 0.0)
    frames = list(Job(order(entry, steps=60, sampler="rk4")).frames(models))
    assert len(frames) > 2 and frames[0].finished == 0 and len(frames[0].images) == 4
    shares = [frame.done for frame in frames]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_cancel_stops_within_a_step(entry, models, monkeypatch):
    monkeypatch.setattr("genlab.studio.jobs._PAUSE", 0.0)
    job = Job(order(entry, steps=1000))
    steps = []
    original = job._check

    def check():
        steps.append(job._stop.is_set())
        original()

    monkeypatch.setattr(job, "_check", check)
    frames = job.frames(models)
    next(frames)
    job.cancel()
    with pytest.raises(Cancelled):
        list(frames)
    assert steps.count(True) == 1 and len(steps) < 900


def test_closing_the_frames_stops_the_work_and_frees_the_device(entry, models, monkeypatch):
    monkeypatch.setattr("genlab.studio.jobs._PAUSE", 0.0)
    frames = Job(order(entry, steps=1000)).frames(models)
    next(frames)
    frames.close()
    *_, last = Job(order(entry, steps=1)).frames(models)
    assert last.finished == 4 and idle_threads()


def test_a_session_cancels_its_own_jobs_only(entry):
    jobs, mine, other = Jobs(), Job(order(entry)), Job(order(entry))
    with jobs.entered("me", mine), jobs.entered("you", other):
        assert jobs.cancel("me") == 1 and jobs.cancel("nobody") == 0
        assert mine._stop.is_set() and not other._stop.is_set()
    assert jobs.cancel("me") == 0


def test_errors_reach_who_asked(entry, models):
    (entry.folder / "network.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(GenlabError, match="cannot be read"):
        list(Job(order(entry)).frames(models))
    assert idle_threads()


def test_few_models_stay_loaded(tmp_path, models):
    for name in "abc":
        write_run(tmp_path / name)
    entries = Catalog([tmp_path]).refresh().entries.values()
    seen = []
    for entry in [*entries, *entries]:
        with models.borrowed(entry) as generator:
            seen.append(generator)
        assert len(models._loaded) <= 2
        with models.borrowed(entry) as again:
            assert again is generator


def test_files_are_bounded_and_removed(entry, models):
    outputs = Outputs(largest=6000)
    made = order(entry)
    *_, last = Job(made).frames(models)
    for _ in range(6):
        newest = outputs.deliver(made, last.images)
    left = list(outputs.root.iterdir())
    assert newest.archive.exists() and len(newest.images) == 4
    assert newest.archive.parent in left and sum(f.stat().st_size for d in left for f in d.iterdir()) <= 6000
    outputs.close()
    assert not outputs.root.exists()
