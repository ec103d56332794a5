"""Visitors who mean harm: each is refused in words, nothing of theirs is run or read, and the next one is served."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from studio_page import expect
from studio_server import studio

SCRIPT = "<img src=x onerror=alert(1)>"
NAN, INFINITY = float("nan"), float("inf")
PATIENT = {"timeout": 120}


@pytest.fixture(scope="module")
def said():
    """The lines of the server."""
    return []


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Runs with names and classes that want to be more than words."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(trained, folder / "tiny")
    for number, name in enumerate([SCRIPT, "$(touch hacked)", "a\u202eb", "..", "'; DROP TABLE runs;--", "x" * 200]):
        run = folder / (name if name != ".." else "...")
        shutil.copytree(trained / "export", run / "export")
        file = run / "export" / "config.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps({**told, "name": name, "class_names": [name, *map(str, range(1, 10))]}))
        if number == 5:
            file.write_text("[" * 100_000)
    return folder


@pytest.fixture(scope="module")
def address(runs, said):
    with studio(runs, said) as found:
        yield found


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    found = Client(address, verbose=False, httpx_kwargs=PATIENT, download_files=tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def run(client):
    return next(entry["id"] for entry in client.predict(api_name="/runs") if entry["name"] == "tiny")


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def working(client, run):
    """After all attacks the worker does its work."""
    yield
    made = client.predict(run, [3], 1, 0, {"steps": 1}, api_name="/generate")
    assert made["labels"] == [3]


@pytest.fixture(autouse=True)
def unharmed(said, runs, client):
    """After every attack: the page answers, no traceback, and nothing was made or changed."""
    yield
    assert client.predict(api_name="/runs")
    assert "Traceback" not in "".join(said) + (runs / ".studio" / "worker.log").read_text()
    assert not list(Path.cwd().glob("hacked"))


def call(http, endpoint, data=None, raw=None):
    """What a program of one's own making is told: the words of the refusal, or None if there was none."""
    body = json.dumps({"data": data}).encode() if raw is None else raw
    asked = http.post(f"/gradio_api/call/{endpoint}", content=body, headers={"content-type": "application/json"})
    if asked.status_code != 200:
        assert 400 <= asked.status_code < 500
        return asked.text
    kind = None
    with http.stream("GET", f"/gradio_api/call/{endpoint}/{asked.json()['event_id']}") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == "error":
                return json.loads(line.removeprefix("data: "))["error"]
            elif line.startswith("data: ") and kind == "complete":
                return None
    raise AssertionError("no answer")


FOREIGN_FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


def order(run, /, **changes):
    wanted = {"run": run, "classes": [1], "per_class": 1, "seed": 0, "settings": {"steps": 1}, **changes}
    return list(wanted.values())


@pytest.mark.parametrize("endpoint", ["generate", "submit"])
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"run": "../../../etc/passwd"}, "no such run"),
        ({"run": "/etc/passwd"}, "no such run"),
        ({"run": "%2e%2e%2fetc"}, "no such run"),
        ({"run": "\ud800\x00"}, "no such run"),
        ({"run": "x" * 10**6}, "no such run"),
        ({"run": ["tiny"]}, "no such run"),
        ({"run": None}, "no such run"),
        ({"run": FOREIGN_FILE}, "do not fit"),
        ({"classes": [NAN]}, "class"),
        ({"classes": [-1]}, "class"),
        ({"classes": [[[[1]]]]}, "class"),
        ({"classes": [{"path": "/etc/passwd"}]}, "class"),
        ({"classes": list(range(100_000))}, "100000 classes"),
        ({"classes": SCRIPT}, "at least one class"),
        ({"classes": ["\u0663"]}, "unknown"),  # an Arabic three
        ({"classes": ["\u202e3\x00"]}, "unknown"),
        ({"per_class": NAN}, "images per class"),
        ({"per_class": INFINITY}, "images per class"),
        ({"per_class": -5}, "images per class"),
        ({"per_class": 10**9}, "images per class"),
        ({"per_class": True}, "images per class"),
        ({"seed": NAN}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": "0; rm -rf /"}, "seed"),
        ({"settings": [1]}, "mapping"),
        ({"settings": {"steps": NAN}}, "steps"),
        ({"settings": {"steps": 10**9}}, "steps"),
        ({"settings": {"guidance": -INFINITY}}, "guidance"),
        ({"settings": {"sampler": "os:system"}}, "sampler"),
        ({"settings": {"__class__": 1}}, "__class__"),
        ({"settings": {"\ud800": 1}}, "sampling"),
        ({"settings": {"steps": {"a": [[[[]]]]}}}, "steps"),
    ],
)
def test_orders_of_nonsense(http, run, endpoint, changes, words):
    assert words in call(http, endpoint, order(run, **changes))


@pytest.mark.parametrize("endpoint", ["job", "cancel"])
@pytest.mark.parametrize("name", ["../../secret", "0" * 20 + "-" + "a" * 24, "\x00", ["x"], {"a": 1}, "x" * 10**6, NAN])
def test_jobs_of_nobody(http, endpoint, name):
    assert "no such job" in call(http, endpoint, [name])


def test_jobs_of_others_are_not_listed(client, run, address):
    mine = client.predict(run, [1], 1, 0, {"steps": 1}, api_name="/submit")
    other = Client(address, verbose=False, httpx_kwargs=PATIENT)
    assert mine in client.predict(api_name="/jobs") and mine not in other.predict(api_name="/jobs")
    assert other.predict(api_name="/cancel") == 0
    other.close()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"data":["x",[1],1,' + b"9" * 5000 + b",{}]}",
        b'{"data":["x",' + b"[" * 900 + b"]" * 900 + b",1,0,{}]}",
        b'{"data":"x"}',
        b'{"data":',
        b"\xff\xfe",
        b"{}",
        b'{"data":[]}',
    ],
)
def test_requests_that_are_no_order(http, raw):
    assert call(http, "generate", raw=raw)


def test_endpoints_that_are_not_there(http):
    assert "no such endpoint" in call(http, "no-such", [1])


def test_every_endpoint_refuses_nonsense(http, client):
    """Those of other panels too, as they come."""
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {"/runs", "/generate", "/submit", "/job", "/cancel"} <= set(named)
    for name, told in named.items():
        needed = len(told["parameters"])
        if not needed or name == "/cancel":
            continue
        for junk in (NAN, -1, SCRIPT, "../../etc/passwd", {"path": "/etc/passwd"}, [[[]]], 10**400):
            assert call(http, name.strip("/"), [junk] * needed), (name, junk)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        "{runs}/.studio/secret",
        "{runs}/.studio/worker.log",
        "{runs}/.studio/jobs/{job}/order.json",
        "{runs}/.studio/results/../secret",
        "{runs}/.studio/results",
        "{runs}/tiny/export/network.safetensors",
        "{runs}/tiny/config.yaml",
        "%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "{address}/config",
        "http://169.254.169.254/latest/meta-data",
        "app.py",
    ],
)
def test_files_that_are_nobodys_business(http, runs, client, run, address, path):
    job = client.predict(run, [1], 1, 0, {"steps": 1}, api_name="/submit")
    answer = http.get("/gradio_api/file=" + path.format(runs=runs, job=job, address=address))
    assert answer.status_code in (403, 404) and len(answer.content) < 500


def bomb():
    """A PNG file that says it is 20,000 pixels wide and high, and is as many zeros."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**7)))]
    chunks = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in [*parts, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb():
    """A small PNG file with a compressed text of 64 MiB."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    data = b"genlab\0\0" + zlib.compress(bytes(2**26))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return buffer.getvalue()[:33] + chunk + buffer.getvalue()[33:]


@pytest.mark.browser
@pytest.mark.parametrize(
    "name, data, words",
    [
        ("large.png", bomb(), "too many"),
        ("text.png", text_bomb(), "damaged"),
        ("page.png", f"<html>{SCRIPT}</html>".encode(), "damaged"),
    ],
)
def test_images_that_mean_harm(page, name, data, words):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Settings from an image", exact=True).click()
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": data})
    expect(page.get_by_test_id("toast-body")).to_contain_text(words)


def test_uploads_that_are_too_large_are_refused(http):
    files = {"files": ("large.png", io.BytesIO(bytes(17 * 2**20)))}
    assert http.post("/gradio_api/upload", files=files).status_code == 413


@pytest.mark.browser
def test_names_are_words_and_nothing_else(page, complaints):
    shown = []
    page.on("dialog", lambda dialog: (shown.append(dialog.message), dialog.dismiss()))
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=SCRIPT).click()
    expect(page.locator(".card").first).to_contain_text(SCRIPT)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".status:visible [role=status]")).to_contain_text("40 images in")
    expect(page.get_by_text(SCRIPT).first).to_be_visible()
    page.get_by_role("tab", name="Jobs", exact=True).click()
    expect(page.locator(".jobs")).to_contain_text(SCRIPT)
    assert not shown and not page.locator("img[onerror]").count()


def test_the_refusal_reaches_clients_as_words(client, run):
    with pytest.raises(AppError, match="images per class"):
        client.predict(run, [1], -1, 0, {}, api_name="/generate")
