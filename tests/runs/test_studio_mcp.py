"""The studio's endpoints as tools of language models, over the Model Context Protocol."""

import json
from ast import literal_eval

import httpx
import pytest
from studio_server import studio


@pytest.fixture(scope="module")
def address(trained):
    pytest.importorskip("mcp", reason='pip install "mcp>=1.21,<2"')
    with studio(trained.parent, None, "--mcp") as found:
        yield found


def ask(address, method, **given):
    """The result of a request, as programs of one's own making ask it."""
    accepted = {"accept": "application/json, text/event-stream"}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": given}
    with httpx.Client(timeout=120, trust_env=False) as http:
        answer = http.post(f"{address}gradio_api/mcp/", json=body, headers=accepted).text
    told = next(line for line in answer.splitlines() if line.startswith("data: "))
    return json.loads(told.removeprefix("data: "))["result"]


def test_endpoints_are_tools_and_what_panels_do_among_themselves_is_none(address):
    tools = {tool["name"]: tool for tool in ask(address, "tools/list")["tools"]}
    assert {"runs", "generate", "submit", "job", "jobs", "cancel", "compare", "score"} <= tools.keys()
    assert not [name for name in tools if name.startswith("_") or "lambda" in name]
    assert all(tool["description"] for tool in tools.values())
    assert tools["generate"]["inputSchema"]["required"] == ["run", "classes"]


def test_a_tool_makes_images(address):
    (run,) = literal_eval(ask(address, "tools/call", name="runs", arguments={})["content"][0]["text"])
    wanted = {"run": run["id"], "classes": [3], "per_class": 2, "seed": 5, "settings": {"steps": 2}}
    made = ask(address, "tools/call", name="generate", arguments=wanted)
    assert not made.get("isError"), made
    assert "png" in json.dumps(made["content"])
    refused = ask(address, "tools/call", name="generate", arguments={**wanted, "per_class": 1000})
    assert refused["isError"] and "images per class" in refused["content"][0]["text"]
