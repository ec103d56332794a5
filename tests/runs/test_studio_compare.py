"""The Compare panel as visitors and programs meet it."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from studio_page import button, expect, screenshot, status, tab
from studio_server import studio

HEIGHT = "document.querySelector('.compared').offsetHeight"


@pytest.fixture(scope="module")
def address(tmp_path_factory, trained):
    """The studio over two runs of the same classes."""
    runs = tmp_path_factory.mktemp("alike")
    for name in ("tiny", "twin"):
        shutil.copytree(trained, runs / name)
        for file in (runs / name / "export" / "config.json", runs / name / "generator.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "name": name}))
    with studio(runs) as found:
        yield found


def field(page, name):
    return page.get_by_role("textbox", name=name)


def images(page, where, kind=""):
    return page.locator(f"{where}:visible .grid-container img{kind}")


@pytest.mark.browser
def test_models_are_compared_side_by_side(page, tmp_path):
    tab(page, "Compare")
    expect(button(page, "Compare")).to_be_enabled()
    field(page, "Steps").fill("3")
    button(page, "Compare").click()
    expect(images(page, ".compared")).to_have_count(20)  # their places, from the beginning
    expect(status(page)).to_have_text("20 images to compare")
    expect(images(page, ".compared", ':not([src^="data:"])')).to_have_count(20)
    expect(page.locator(".column-title:visible").filter(has_text=re.compile("^tiny$|^twin$"))).to_have_count(2)
    rows = page.locator(".compared-table tbody tr")
    for number, name in enumerate(("tiny", "twin")):
        expect(rows.nth(number)).to_have_text(re.compile(rf"^{name}\s*3\s*1\.5\s*[\d.]+ k\s*24\s*[\d.]+ ms$"))
    expect(page.locator("#compare-commands")).to_contain_text("steps=3")
    screenshot(page, "compare-models")
    with page.expect_download() as download:
        page.get_by_text("Download all as ZIP").locator("visible=true").click()
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 21


@pytest.mark.browser
def test_a_slider_goes_through_the_values_of_a_setting(page):
    tab(page, "Compare")
    expect(button(page, "Compare")).to_be_enabled()
    page.get_by_label("One model, several values").check()
    expect(field(page, "Values")).to_have_value("1, 2, 4, 8, 16, 32")
    expect(field(page, "Steps")).to_have_count(0)  # it would do nothing
    field(page, "Values").fill("1 2, 5")
    button(page, "Compare").click()
    expect(status(page)).to_have_text("30 images to compare")
    expect(images(page, ".strip")).to_have_count(30)
    slider = page.get_by_role("slider", name="Steps 5")
    expect(slider).to_be_enabled()
    shown = page.locator(".free:not(.strip):visible img").first
    last = shown.get_attribute("src")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.get_by_role("slider", name="Steps 2")).to_be_visible()
    expect(shown).not_to_have_attribute("src", last)
    screenshot(page, "compare-values")


@pytest.mark.browser
def test_columns_fill_while_they_form_and_stop_stops(page, address):
    tab(page, "Compare")
    expect(button(page, "Compare")).to_be_enabled()
    field(page, "Steps").fill("1000")
    button(page, "Compare").click()
    forming = images(page, ".compared", '[src^="data:image/png"]')
    expect(forming).to_have_count(10)
    expect(status(page)).to_contain_text("tiny")
    height = page.evaluate(HEIGHT)
    screenshot(page, "compare-forming")
    button(page, "Stop").click()
    expect(status(page)).to_have_text("Stopped")
    assert page.evaluate(HEIGHT) == height
    field(page, "Steps").fill("one")
    button(page, "Compare").click()
    expect(page.get_by_text("steps: 'one' is no number").first).to_be_visible()


def test_programs_compare(address, tmp_path):
    client = Client(address, verbose=False, download_files=tmp_path)
    try:
        runs = [run["id"] for run in client.predict(api_name="/runs")]
        wanted = {"classes": [3, "7"], "seed": 5}
        many = client.predict(runs, **wanted, settings={"steps": 2}, api_name="/compare")
        assert many["labels"] == [3, 7] and [column["name"] for column in many["columns"]] == ["tiny", "twin"]
        one = client.predict(runs[:1], **wanted, varied="steps", values=[4, 2], api_name="/compare")
        assert [column["evaluations"] for column in one["columns"]] == [16, 32]  # rk4, guided
        first, same = many["columns"][0], one["columns"][0]
        assert first["command"] == same["command"] and first["sampling"] == same["sampling"]
        for picture, again in zip(first["images"], same["images"]):
            assert np.array_equal(*(np.asarray(Image.open(local(file))) for file in (picture, again)))
        for change, said in (
            ({"runs": runs[:1]}, "two to 4"),
            ({"runs": "../../etc"}, "list"),
            ({"runs": ["../../etc", runs[0]]}, "no such run"),
            ({"varied": "sampler", "values": [1, 2]}, "one model"),
            ({"settings": {"guidance": -1}}, "guidance"),
        ):
            with pytest.raises(AppError, match=said):
                client.predict(**{"runs": runs, **wanted, **change}, api_name="/compare")
    finally:
        client.close()


def local(file):
    """The downloaded path of a file that an endpoint gave."""
    return file["path"] if isinstance(file, dict) else file
