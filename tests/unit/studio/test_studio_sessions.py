"""What the page's process remembers of visitors is little, and of so many only."""

import time

import gradio as gr
import httpx

from genlab.studio.sessions import BACKLOG, MOST, Sessions, keeps_up


def page():
    with gr.Blocks(analytics_enabled=False) as found:
        number = gr.Number(3)
        text = gr.Textbox("words")
        state = gr.State("")
    return found, number, text, state


def test_states_and_changed_components_belong_to_a_session():
    found, number, _, state = page()
    sessions = Sessions(found)
    sessions["me"][state._id] = "mine"
    sessions["me"][number._id] = gr.Number(maximum=5, render=False)
    assert sessions["me"][state._id] == "mine" and sessions["you"][state._id] == ""
    assert sessions["me"][number._id].maximum == 5 and sessions["you"][number._id].maximum is None


def test_values_shown_are_not_kept():
    found, _, text, _ = page()
    session = Sessions(found)["me"]
    session._update_value_in_config(text._id, "x" * 10**6)
    session._update_config(text._id)
    session[text._id] = text
    assert not list(session.components)


def test_whoever_was_here_last_stays():
    found, _, _, state = page()
    sessions = Sessions(found)
    for number in range(MOST + 10):
        sessions[f"visitor {number}"][state._id] = number
        sessions["me"][state._id] = "mine"
    assert len(sessions.session_data) == len(sessions.time_last_used) == MOST
    assert sessions["me"][state._id] == "mine" and "visitor 0" not in sessions


def test_news_for_who_does_not_read_them_are_left_out():
    sent = []

    async def news(request: gr.Request):
        for number in range(3 * BACKLOG):
            if keeps_up(found, request.session_hash):
                sent.append(number)
                yield number
        sent.append("end")

    with gr.Blocks(analytics_enabled=False) as found:
        gr.Button().click(news, None, gr.Number())
    found.launch(quiet=True, prevent_thread_lock=True, ssr_mode=False)
    with httpx.Client(base_url=found.local_url, trust_env=False) as http:
        http.post("/gradio_api/queue/join", json={"fn_index": 0, "data": [], "session_hash": "deaf"})
        limit = time.monotonic() + 30
        while "end" not in sent and time.monotonic() < limit:
            time.sleep(0.02)
    found.close()
    assert sent[-1] == "end" and BACKLOG / 2 < len(sent) <= BACKLOG + 1
