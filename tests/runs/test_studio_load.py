"""The studio under load: many programs at once, many runs, and nothing that grows."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from gradio_client import Client
from PIL import Image
from runs_support import genlab
from studio_page import button, expect, tab
from studio_server import studio

from genlab.studio.store import Store
from genlab.studio.worker import Workers, page_open

USERS, EACH = 30, 2
WAITING = 10
PATIENT = {"timeout": 120}
STEPS = 2


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where the server keeps what is uploaded and served."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def address(trained, temporary):
    with studio(trained.parent) as found:
        yield found


def wanted(user, turn):
    """Classes and seed, different for everybody and every time."""
    return {"classes": [user % 10], "per_class": 2, "seed": 100 * user + turn, "settings": {"steps": STEPS}}


def use(address, user, downloads):
    """A user's requests one after another; pixels by seed."""
    client = Client(address, verbose=False, httpx_kwargs=PATIENT, download_files=downloads / str(user))
    run = client.predict(api_name="/runs")[0]["id"]
    made = {}
    for turn in range(EACH):
        order = wanted(user, turn)
        answer = client.predict(run, **order, api_name="/generate")
        assert answer["labels"] == [user % 10] * 2
        made[order["seed"]] = [
            pixels(image["path"] if isinstance(image, dict) else image) for image in answer["images"]
        ]
    client.close()
    return made


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


def test_many_users_at_once_get_their_own_images(address, trained, tmp_path, temporary):
    with ThreadPoolExecutor(USERS) as pool:
        answers = list(pool.map(lambda user: use(address, user, tmp_path), range(USERS)))
    made = {seed: images for answer in answers for seed, images in answer.items()}
    assert len(made) == USERS * EACH
    for user, turn in ((0, 0), (13, 1), (29, 0)):
        order, out = wanted(user, turn), tmp_path / f"out{user}"
        words = ("--classes", user % 10, "--per-class", 2, "--seed", order["seed"], "--steps", STEPS, "--out", out)
        assert genlab("sample", trained, *words) == 0
        files = sorted(out.glob("[0-9]*-*.png"))
        assert all(np.array_equal(a, pixels(b)) for a, b in zip(made[order["seed"]], files, strict=True))
    different = {images[0].tobytes() for images in made.values()}
    assert len(different) == len(made)
    assert not [file for file in temporary.rglob("*") if file.is_file()]  # results are served from where they lie


def test_who_waits_is_told_the_place_and_nobody_is_lost(address, tmp_path):
    made = {"verbose": False, "httpx_kwargs": PATIENT, "download_files": tmp_path}
    with ThreadPoolExecutor(WAITING) as pool:
        clients = list(pool.map(lambda _: Client(address, **made), range(WAITING)))
    run = clients[0].predict(api_name="/runs")[0]["id"]
    long = clients[0].predict(run, [0], 200, 0, {"steps": 1000}, api_name="/submit")
    ids = [client.predict(run, **wanted(7, 7), api_name="/submit") for client in clients]
    places = [clients[0].predict(name, api_name="/job") for name in ids]
    assert {place["status"] for place in places} == {"queued"}
    assert sorted(place["ahead"] for place in places) == list(range(1, WAITING + 1))
    clients[0].predict(long, api_name="/cancel")
    last = {"status": "queued"}
    while last["status"] in ("queued", "running"):
        last = clients[0].predict(ids[-1], api_name="/job")
    assert [clients[0].predict(name, api_name="/job")["status"] for name in ids] == ["done"] * WAITING
    for client in clients:
        client.close()


def test_memory_stays_where_it_is(address, trained):
    """A little of what benchmarks/studio_load.py measures over 500."""
    sizes = []
    for seed in range(60):
        if seed % 5 == 0:  # another visitor
            client = Client(address, verbose=False, httpx_kwargs=PATIENT, download_files=False)
            run = client.predict(api_name="/runs")[0]["id"]
        client.predict(run, [seed % 10], 1, seed, {"steps": 1}, api_name="/generate")
        if seed % 20 == 19:
            sizes.append(resident(trained.parent, address))
    assert max(sizes[1:]) < 1.1 * sizes[0]


def resident(runs, address):
    """MiB of the page's process and of the worker."""
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    page = [c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN]
    worker = [int(lock.read_text()) for lock in runs.glob(".studio/worker-*.lock")]
    return sum(psutil.Process(pid).memory_info().rss for pid in {*page, *worker}) / 2**20


def test_training_ends_with_a_worker_that_is_killed_and_goes_on_later(recipe, tmp_path):
    store, runs = Store(tmp_path / "jobs"), tmp_path / "runs"
    workers = Workers(store.root, ("cpu",))
    changes = ["name=long", "training.images=1_000_000"]
    told = {"config": str(recipe), "overrides": changes, "name": "long", "runs": str(runs)}
    with page_open(store.root):
        store.submit("train", "me", "long", told)
        workers.ensure()
        (worker,) = (psutil.Process(process.pid) for process in workers._started)
        wait((runs / "long" / "log.jsonl").exists)
        training = worker.children(recursive=True)
        worker.kill()
        gone, alive = psutil.wait_procs(training, timeout=PATIENT["timeout"])
    assert gone and not alive
    assert list((runs / "long" / "checkpoints").iterdir())  # from where it can be continued


def wait(ready):
    limit = time.monotonic() + PATIENT["timeout"]
    while not ready():
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def many(trained, tmp_path_factory):
    """Two hundred runs, one of them broken."""
    folder = tmp_path_factory.mktemp("many")
    told = json.loads((trained / "export" / "config.json").read_text())
    for number in range(200):
        export = folder / f"run{number:03d}" / "export"
        export.mkdir(parents=True)
        (export / "config.json").write_text(json.dumps({**told, "name": f"run{number:03d}"}))
        os.link(trained / "export" / "network.safetensors", export / "network.safetensors")
        shutil.copy(trained / "config.yaml", export.parent)
    (folder / "run123" / "export" / "config.json").write_text("{")
    return folder


def test_two_hundred_runs_are_offered_and_changes_are_seen(many):
    with studio(many) as address:
        client = Client(address, verbose=False, httpx_kwargs=PATIENT)
        assert len(client.predict(api_name="/runs")) == 199
        shutil.rmtree(many / "run007")
        assert len(client.predict(api_name="/runs")) == 198
        client.close()


@pytest.mark.browser
def test_timers_of_tabs_out_of_sight_do_not_tick(page):
    timers = page.evaluate("window.gradio_config.components.filter(c => c.type == 'timer').map(c => c.id)")
    events = page.evaluate("window.gradio_config.dependencies.map(d => [d.id, d.targets])")
    ticking = {number for number, targets in events if {target for target, _ in targets} & set(timers)}
    turning = {number for number, targets in events if {"select"} == {event for _, event in targets}}
    assert ticking and turning

    def of(numbers):
        return lambda request: (
            request.method == "POST" and any(f'"fn_index":{number},' in (request.post_data or "") for number in numbers)
        )

    with page.expect_request(of(ticking)):
        tab(page, "Jobs")
    with page.expect_response(lambda response: of(turning)(response.request)):
        tab(page, "Generate")
    page.wait_for_timeout(1000)  # what was under way
    seen = []
    page.on("request", lambda request: seen.append(request) if of(ticking)(request) else None)
    page.wait_for_timeout(4500)  # a timer in sight ticks every two seconds
    assert not seen


@pytest.mark.browser
def test_settings_are_taken_from_an_image(page, address, tmp_path):
    client = Client(address, verbose=False, httpx_kwargs=PATIENT, download_files=tmp_path)
    run = client.predict(api_name="/runs")[0]["id"]
    made = client.predict(run, [4, 8], 3, 77, {"steps": 5}, api_name="/generate")
    client.close()
    image = Path(made["images"][2]["path"] if isinstance(made["images"][2], dict) else made["images"][2])
    with page.expect_file_chooser() as chooser:
        button(page, "Settings from an image").click()
    chooser.value.set_files(image)
    expect(page.get_by_label("Images per class").locator("visible=true").first).to_have_value("3")
    expect(page.get_by_label("Seed", exact=True).locator("visible=true").first).to_have_value("77")
    expect(page.get_by_label("Steps").locator("visible=true").first).to_have_value("5")
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (4, 4)).save(foreign)
    with page.expect_file_chooser() as chooser:
        button(page, "Settings from an image").click()
    chooser.value.set_files(foreign)
    expect(page.get_by_text("was not made here").first).to_be_visible()
