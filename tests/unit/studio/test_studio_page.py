"""The page fetches nothing from addresses that visitors name."""

import gradio as gr
import httpx
import pytest
from gradio import processing_utils, routes

from genlab.studio.page import ARGUMENTS, Page

FAR = "https://example.com/picture.png"
FILE = {"path": FAR, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def http():
    """A page with an endpoint `echo` that takes an image, a file and anything."""

    def echo(image: str, file: str, anything: dict) -> str:
        return "taken"

    with Page(analytics_enabled=False) as page:
        parts = [gr.Image(type="filepath"), gr.File(), gr.JSON()]
        gr.Button().click(echo, parts, gr.Textbox(), api_name="echo")
    page.launch(server_port=None, quiet=True, prevent_thread_lock=True, ssr_mode=False, **ARGUMENTS)
    with httpx.Client(base_url=page.local_url, trust_env=False, timeout=30) as found:
        yield found
    page.close()


@pytest.fixture(autouse=True)
def fetched(monkeypatch):
    """Nothing may be fetched."""
    asked = []

    async def fetch(url, *more):
        asked.append(url)
        raise AssertionError

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    monkeypatch.setattr(routes, "secure_url_stream_response", fetch)
    yield
    assert not asked


@pytest.mark.parametrize(
    "given",
    [
        [FILE, None, None],
        [None, FILE, None],
        [None, None, {"deep": [{"down": FILE}]}],
        [{**FILE, "url": FAR, "path": FAR.replace("https", "http")}, None, None],
    ],
)
def test_files_elsewhere_are_refused(http, given):
    asked = http.post("/gradio_api/call/echo", json={"data": given})
    answer = http.get(f"/gradio_api/call/echo/{asked.json()['event_id']}").text
    assert "event: error" in answer and "are not fetched" in answer


@pytest.mark.parametrize("route", ["gradio_api/file=", "gradio_api//file=", "file="])
@pytest.mark.parametrize(
    "far", [FAR, "http://169.254.169.254/latest", "http:%2F%2Fexample.com", "%68ttps://example.com"]
)
def test_the_file_route_is_no_proxy(http, route, far):
    answer = http.get(f"/{route}{far}")
    assert answer.status_code in (403, 404) and len(answer.content) < 200


def test_no_file_is_fine(http):
    asked = http.post("/gradio_api/call/echo", json={"data": [None, None, {"path": FAR}]})
    assert '"taken"' in http.get(f"/gradio_api/call/echo/{asked.json()['event_id']}").text
