"""The Score panel: an evaluation from the page and from programs, stopped and continued, read and compared."""

import re
import shutil
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from studio_page import button, expect, fill, screenshot, status, tab

QUICK = ["class_accuracy@pixels", "intra_class_fid@pixels"]


@pytest.fixture(autouse=True)
def unscored(trained):
    yield
    shutil.rmtree(trained / "evaluation", ignore_errors=True)


@pytest.mark.browser
def test_a_run_is_scored_stopped_continued_and_compared(page, trained):
    tab(page, "Score")
    expect(page.get_by_text("No report yet")).to_be_visible()
    for other in ("precision", "recall", "density", "coverage", "copies"):
        page.get_by_label(f"{other} on pixels").uncheck()
    for other in ("fid", "is", "kid"):
        page.get_by_label(other, exact=True).uncheck()
    fill(page, "Images to score", 1280)
    fill(page, "Steps", 8)
    button(page, "Score").click()
    expect(status(page)).to_have_text(re.compile(r"[1-9]\d* of 1,280 images"))
    screenshot(page, "score-running")
    button(page, "Stop").click()
    expect(status(page)).to_have_text("Stopped")
    assert list(trained.glob("evaluation/digits-1280-*/.progress/state-*"))
    button(page, "Score").click()
    expect(status(page)).to_have_text("tiny, digits is scored")
    report = page.locator(".scores:visible")
    expect(report).to_contain_text("class_accuracy")
    expect(page.get_by_text("by an interrupted run of the same command")).to_have_count(1)
    strips = page.locator(".class:visible img")
    expect(strips).to_have_count(12)
    assert strips.evaluate_all("found => found.every(image => image.complete && image.naturalWidth > 64)")
    expect(page.locator(".compared:visible")).to_contain_text("steps 8")
    expect(page.locator(".plot:visible svg circle")).to_have_count(1)
    expect(page.get_by_text("genlab evaluate").last).to_be_visible()
    button(page, "The whole report ▼").click()
    expect(page.frame_locator("iframe.report").locator("h1")).to_be_visible()
    screenshot(page, "score")


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    found = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


def test_programs_get_the_scores_of_the_command(client):
    run = client.predict(api_name="/runs")[0]["id"]
    told = client.predict(run, samples=20, seed=3, metrics=QUICK, settings={"steps": 1}, api_name="/score")
    assert [score["metric"] for score in told["scores"]] == ["class_accuracy", "intra_class_fid"]
    assert told["samples"] == 20 and told["cost"]["evaluations_per_image"] > 0
    assert "steps=1 --protocol digits --samples 20 --seed 3 --metrics" in told["command"]
    page = told["page"]["path"] if isinstance(told["page"], dict) else told["page"]
    assert Path(page).read_text().startswith("<!doctype html>")
    (known,) = client.predict(api_name="/reports")
    assert known["run"] == run and known["scores"] == told["scores"] and known["cost"]["images_per_second"] > 0


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"run": "../../etc"}, "no such run"),
        ({"protocol": "../../etc"}, "does not fit this run"),
        ({"samples": 10**9}, "images to score"),
        ({"seed": -1}, "seed"),
        ({"metrics": ["fid", "--out=/tmp/x"]}, "none of this protocol's"),
        ({"settings": {"stepz": 3}}, "stepz"),
    ],
)
def test_programs_are_refused_in_plain_words(change, complaint, client):
    run = client.predict(api_name="/runs")[0]["id"]
    with pytest.raises(AppError, match=complaint):
        client.predict(**{"run": run, "protocol": "digits", "samples": 20} | change, api_name="/score")
