"""Jobs on disk: taken once, in turns, kept or removed, whoever starts and ends meanwhile."""

import os
import time

import pytest

from genlab.core.errors import GenlabError
from genlab.studio.store import State, Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def submit(store, owner="me", **wants):
    return store.submit("generate", owner, "a run", wants)


def ended(store, job, **more):
    store.finish(job, State("done", ended=time.time(), **more))


def test_another_process_sees_the_same_job(store):
    job = submit(store, seed=3)
    other = Store(store.root)
    assert other.get(job.id) == job and other.state(job).status == "queued" and other.secret == store.secret
    assert other.claim("cpu") == job and store.state(job).status == "running" and store.claim("cpu") is None
    other.show(job, {"done": 0.5})
    assert store.frame(job) == {"done": 0.5} and store.stamp(job)
    other.finish(job, State("done", result={"files": []}, ended=1.0))
    assert store.state(job).over and store.frame(job) is None and not list((store.root / "running").iterdir())


def test_owners_take_turns(store):
    greedy = [submit(store, "greedy") for _ in range(3)]
    first = store.claim("cpu")
    modest = submit(store, "modest")
    late = submit(store, "late")
    assert first == greedy[0]
    assert [store.ahead(job) for job in (modest, late, greedy[1])] == [1, 2, 3]
    assert [store.claim("cpu") for _ in range(4)] == [modest, late, greedy[1], greedy[2]]


def test_one_owner_is_served_in_the_order_of_asking(store):
    asked = [submit(store) for _ in range(20)]
    assert [store.claim("cpu") for _ in asked] == asked


def test_stop_reaches_waiting_and_running_jobs(store):
    running, waiting = submit(store), submit(store)
    assert store.claim("cpu") == running
    store.stop(waiting)
    assert store.state(waiting).status == "stopped" and store.claim("cpu") is None
    assert not store.stopping(running)
    store.stop(running)
    store.stop(running)
    assert store.stopping(running) and store.state(running).status == "running"


def test_a_full_queue_turns_away_but_loses_nothing(tmp_path):
    store = Store(tmp_path, waiting=(3, 2))
    kept = [submit(store), submit(store)]
    with pytest.raises(GenlabError, match="2 of them yours"):
        submit(store)
    kept.append(submit(store, "you"))
    with pytest.raises(GenlabError, match="3 jobs are waiting"):
        submit(store, "they")
    assert {job.id for job in store.jobs()} == {job.id for job in kept}
    assert [job.owner for job in store.jobs("you")] == ["you"]


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 20 + "-" + "f" * 24, None, 3, "x" * 10_000, "a\0b"])
def test_what_is_no_id_is_refused(store, name):
    with pytest.raises(GenlabError, match="no such job"):
        store.get(name)


def test_results_are_bounded_by_size_and_age(tmp_path):
    store = Store(tmp_path, largest=2500, age=3600)
    jobs = [submit(store) for _ in range(4)]
    waiting = submit(store)
    for job in jobs:
        store.claim("cpu")
        (job.results / "image.png").write_bytes(bytes(1000))
        ended(store, job)
    left = [job for job in jobs if job.results.exists()]
    assert left == jobs[2:] and waiting.folder.exists()
    assert [job.id for job in store.jobs()] == [waiting.id, jobs[3].id, jobs[2].id]
    with pytest.raises(GenlabError, match="removed after a while"):
        store.get(jobs[0].id)
    store.finish(jobs[2], State("done", ended=time.time() - 3601))
    ended(store, jobs[3])
    assert not jobs[2].folder.exists() and not jobs[2].results.exists() and jobs[3].results.exists()


def test_small_results_are_bounded_by_number_and_visitors_are_forgotten(tmp_path):
    store = Store(tmp_path, most=3)
    old = store.root / "served" / "somebody"
    old.touch()
    os.utime(old, (0, 0))
    jobs = [submit(store, f"visitor {number}") for number in range(6)]
    for _ in jobs:
        ended(store, store.claim("cpu"))
    assert store.jobs() == jobs[:2:-1] and len(list(store.results.iterdir())) == 3
    assert not old.exists() and len(list((store.root / "served").iterdir())) == 6


def test_what_a_page_remembers_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("genlab.studio.store._REMEMBERED", 4)
    store = Store(tmp_path, waiting=(50, 50))
    jobs = [submit(store) for _ in range(20)]
    assert store.jobs() == jobs[::-1] and len(store._orders) <= 4
    assert [store.get(job.id) for job in jobs] == jobs


def test_what_a_dead_worker_had_begun_is_found(store):
    job = submit(store)
    store.claim("cuda:1")
    assert Store(store.root).abandoned("cuda:1") == [job] and Store(store.root).abandoned("cuda:0") == []
