"""The studio as visitors meet it: in a real browser, and through its named endpoints."""

import json
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from runs_support import genlab
from studio_page import PATIENCE, button, expect, fill, pictures, screenshot, status, turn_to, visit

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
LOOKS = {
    "light": {**DESK, "color_scheme": "light"},
    "dark": {**DESK, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
}
PANELS = ("Generate", "Compare", "Edit", "Tokenizers", "Score", "Train", "Jobs")
SPILLING = """[...document.querySelectorAll("button:is(.lg, .md, .sm)")].filter(
    button => button.checkVisibility() && button.innerText && button.scrollHeight > button.clientHeight + 2
).map(button => button.innerText)"""


def order(page, per_class, steps):
    fill(page, "Images per class", per_class)
    fill(page, "Steps", steps)
    button(page, "Generate").click()


@pytest.mark.browser
def test_images_are_made_shown_and_taken_away(page, tmp_path):
    screenshot(page, "generate-ready")
    expect(page.locator(".card").first).to_contain_text("tiny")
    order(page, per_class=2, steps=3)
    expect(status(page)).to_have_text(re.compile(r"^20 images in "))
    expect(pictures(page, ':not([src^="data:"])')).to_have_count(20)
    page.wait_for_function("[...document.querySelectorAll('#gallery img')].every(i => i.complete && i.naturalWidth)")
    expect(page.locator("#command")).to_contain_text("--per-class 2")
    expect(page.locator("#command")).to_contain_text("steps=3")
    screenshot(page, "generate-finished")
    with page.expect_download() as download:
        page.get_by_text("Download all as ZIP").click()
    assert download.value.suggested_filename == "tiny-seed0.zip"
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 20
        archive.extract("000019-0009.png", tmp_path)
    told = json.loads(Image.open(tmp_path / "000019-0009.png").text["genlab"])
    assert (told["run"], told["index"], told["label"], told["sampling"]["steps"]) == ("tiny", 19, 9, 3)


@pytest.mark.browser
@pytest.mark.parametrize("look", LOOKS)
def test_every_panel_fits_its_window(browser, address, complaints, look):
    context = browser.new_context(**LOOKS[look])
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    visit(page, address)
    for name in PANELS:
        turn_to(page, name)
        page.wait_for_timeout(300)  # what its first sight loads
        screenshot(page, f"{look}-{name.lower()}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        assert page.evaluate(SPILLING) == [], name
    context.close()
    assert not complaints


@pytest.mark.browser
def test_images_show_while_they_form_and_stop_stops(page):
    order(page, per_class=25, steps=1000)  # minutes, if nobody stopped it
    forming = pictures(page, '[src^="data:"]')
    expect(forming.first).to_be_visible()
    expect(status(page)).to_contain_text("images finished")
    early = forming.first.get_attribute("src")
    expect(forming.first).not_to_have_attribute("src", early)
    expect(button(page, "Generate")).to_be_disabled()
    screenshot(page, "generate-forming")
    button(page, "Stop").click()
    expect(status(page)).to_have_text("Stopped")
    expect(button(page, "Stop")).to_be_disabled()
    order(page, per_class=1, steps=2)  # would wait for minutes if the work had gone on
    expect(status(page)).to_have_text(re.compile(r"^10 images in "))


@pytest.mark.browser
def test_a_job_survives_a_reload_and_is_found_again(page, address, complaints):
    order(page, per_class=25, steps=1000)
    expect(pictures(page, '[src^="data:"]').first).to_be_visible()
    page.goto(address)
    expect(pictures(page, '[src^="data:"]').first).to_be_visible()
    expect(status(page)).to_contain_text("images finished")
    expect(button(page, "Generate")).to_be_disabled()
    complaints.clear()  # Gradio's: the page that was left had a stream open
    button(page, "Stop").click()
    expect(status(page)).to_have_text("Stopped")
    order(page, per_class=1, steps=2)
    expect(status(page)).to_have_text(re.compile(r"^10 images in "))
    page.goto(address)
    expect(status(page)).to_have_text(re.compile(r"^10 images in "))
    expect(pictures(page, ':not([src^="data:"])')).to_have_count(10)


@pytest.mark.browser
def test_a_refusal_is_shown_and_does_no_harm(page):
    order(page, per_class=200, steps=2)
    expect(page.get_by_text("ask for 256 images at most").first).to_be_visible()
    order(page, per_class=1, steps=2)
    expect(status(page)).to_have_text(re.compile(r"^10 images in "))


@pytest.mark.browser
def test_a_recipe_is_trained_watched_and_stopped(page, trained):
    page.get_by_role("tab", name="Train").click()
    shown = page.locator(".runs:visible")
    expect(shown).to_contain_text("tiny")
    page.get_by_label("Changes").fill("data.name=folder")
    button(page, "Start training").click()
    expect(page.get_by_text("a page may change").first).to_be_visible()
    name = f"from-the-page-{os.getpid()}"
    small = "training.batch=16\ntraining.log_every=64\ntraining.preview_every=512\nnetwork.depth=1\nnetwork.width=32"
    page.get_by_label("Changes").fill(f"name={name}\ntraining.images=4000\n{small}\nnetwork.heads=2")
    button(page, "Start training").click()
    running = page.locator(".status:visible [role=status]")
    expect(running).to_contain_text("of 4,000 images")
    expect(shown).to_contain_text(name)
    page.get_by_role("tab", name="Jobs").click()
    expect(page.locator(".jobs")).to_contain_text(name)
    screenshot(page, "jobs")
    page.get_by_role("tab", name="Train").click()
    expect(running).to_have_text(f"{name} is trained: choose it in Generate")
    page.get_by_label("Look at").click()
    page.get_by_role("option", name=name).click()
    expect(page.locator(".picture img")).to_be_visible()
    screenshot(page, "train")
    assert (trained.parent / name / "export" / "network.safetensors").exists()
    shutil.rmtree(trained.parent / name)


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    found = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


def test_programs_get_the_images_that_the_command_makes(client, trained, tmp_path):
    (run,) = client.predict(api_name="/runs")
    assert (run["name"], run["num_classes"], run["image_size"], run["images"]) == ("tiny", 10, 8, 640)
    wanted = {"classes": [3, "7"], "per_class": 2, "seed": 5, "settings": {"steps": 3}}
    made = client.predict(run["id"], **wanted, api_name="/generate")
    words = ("--classes", "3,7", "--per-class", "2", "--seed", "5", "--steps", "3", "--out", tmp_path / "out")
    assert genlab("sample", trained, *words) == 0
    files = sorted((tmp_path / "out").glob("[0-9]*-*.png"))
    assert len(files) == 4 and made["labels"] == [int(file.stem[-4:]) for file in files]
    for image, file in zip(made["images"], files):
        assert np.array_equal(np.asarray(Image.open(local(image))), np.asarray(Image.open(file)))
    assert zipfile.ZipFile(local(made["archive"])).namelist() == [file.name for file in files]
    assert "--classes 3,7" in made["command"]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"run": "../../etc"}, "no such run"),
        ({"classes": ["seven"]}, "unknown"),
        ({"classes": []}, "at least one class"),
        ({"per_class": 1000}, "images per class"),
        ({"seed": -1}, "seed"),
        ({"settings": {"stepz": 3}}, "stepz"),
        ({"settings": {"steps": 10**9}}, "steps"),
    ],
)
def test_programs_are_refused_in_plain_words(change, complaint, client):
    run = client.predict(api_name="/runs")[0]["id"]
    wanted = {"run": run, "classes": [3], "per_class": 1, "seed": 0, "settings": {}}
    with pytest.raises(AppError, match=complaint):
        client.predict(**wanted | change, api_name="/generate")


def test_a_program_leaves_its_work_and_comes_back(client):
    run = client.predict(api_name="/runs")[0]["id"]
    wanted = {"classes": list(range(10)), "per_class": 25, "settings": {"steps": 1000}}
    waiting = client.submit(run, **wanted, api_name="/generate")
    while not client.predict(api_name="/jobs"):
        pass
    second = client.predict(run, **wanted, api_name="/submit")
    assert client.predict(second, api_name="/job")["status"] == "queued"
    assert client.predict(second, api_name="/job")["ahead"] == 1
    assert client.predict(second, api_name="/cancel") == 1
    assert client.predict(second, api_name="/job")["status"] == "stopped"
    assert client.predict(api_name="/cancel") == 1
    with pytest.raises(AppError, match="stopped"):
        waiting.result(timeout=PATIENCE / 1000)
    with pytest.raises(AppError, match="no such job"):
        client.predict("../../etc", api_name="/job")


def local(file):
    """The downloaded path of a file that an endpoint gave."""
    return file["path"] if isinstance(file, dict) else file
