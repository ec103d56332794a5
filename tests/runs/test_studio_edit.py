"""The Edit panel: in a real browser, and through its named endpoint."""

import re
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from runs_support import genlab
from studio_page import button, expect, fill, screenshot, status, tab


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """An image that is no square."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60)).save(file)
    return file


def opened(page):
    """The panel with an image on its canvas."""
    tab(page, "Edit")
    expect(page.locator(".canvas img")).to_have_js_property("complete", True)
    expect(page.locator(".canvas img")).to_have_attribute("src", re.compile("^data:image/png"))
    expect(button(page, "Make anew")).to_be_enabled()


def tiles(page):
    return page.locator('.tiles:visible .grid-container img:not([src^="data:"])')


def make(page, count=2, steps=3):
    page.get_by_text("How to sample").locator("visible=true").click()
    fill(page, "Images per class", count)
    fill(page, "Steps", steps)
    button(page, "Make anew").click()


@pytest.mark.browser
def test_what_is_drawn_over_is_made_anew(page, tmp_path):
    opened(page)
    canvas = page.locator(".canvas canvas")
    screenshot(page, "edit-ready")
    button(page, "Make anew").click()
    expect(page.get_by_text("draw over what shall be made anew").first).to_be_visible()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    page.mouse.up()
    make(page)
    expect(status(page)).to_have_text(re.compile("^2 images in "))
    expect(tiles(page)).to_have_count(2)
    expect(page.locator("#edit-command")).to_contain_text("--mask mask.png")
    screenshot(page, "edit-in-painted")
    with page.expect_download() as download:
        page.get_by_text("Download all as ZIP").locator("visible=true").click()
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path)
    mask = np.asarray(Image.open(tmp_path / "mask.png").convert("L"))
    assert (mask[:, 7] == 255).all() and not mask[:, :5].any()
    own, new = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("image.png", "000001-0000.png"))
    assert np.abs(own - new)[:, :5].max() < 3 < np.abs(own - new)[:, 7].max()


@pytest.mark.browser
def test_with_the_keyboard_alone(page):
    opened(page)
    page.locator(".canvas canvas").focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    make(page)
    expect(status(page)).to_have_text(re.compile("^2 images in "))
    page.get_by_role("radio", name="Variation").focus()
    page.keyboard.press("Space")
    expect(page.locator(".canvas canvas")).to_be_hidden()
    expect(page.get_by_label("Strength").locator("visible=true").first).to_have_value("0.6")
    button(page, "Make anew").click()
    expect(page.locator("#edit-command")).to_contain_text("--strength 0.6")
    expect(status(page)).to_have_text(re.compile("^2 images in "))


@pytest.mark.browser
def test_around_an_image_that_was_sent(page, photo):
    opened(page)
    page.get_by_role("radio", name="Mine").check()
    page.locator("#edit-sent input[type=file]").set_input_files(photo)
    shown = page.locator(".canvas img")
    expect(shown).to_have_attribute("src", re.compile("file=.*photo.png"))
    page.get_by_role("radio", name="Out-paint").check()
    expect(shown).to_have_css("left", re.compile(r"^[1-9]"))
    make(page)
    expect(status(page)).to_have_text(re.compile("^2 images in "))
    screenshot(page, "edit-out-painted")
    expect(page.locator("#edit-command")).to_contain_text("--mask mask.png")


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    found = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


def local(file):
    """The downloaded path of a file that an endpoint gave."""
    return file["path"] if isinstance(file, dict) else file


def test_programs_get_the_edits_that_the_command_makes(client, trained, photo, tmp_path):
    run = client.predict(api_name="/runs")[0]["id"]
    wanted = {"classes": [3], "per_class": 2, "seed": 5, "settings": {"steps": 3}, "region": "left half"}
    made = client.predict(run, handle_file(photo), **wanted, strength=0.9, api_name="/edit")
    image, mask = map(local, made["given"])
    words = ("--classes", "3", "--per-class", "2", "--seed", "5", "--steps", "3", "--out", tmp_path / "out")
    assert genlab("sample", trained, *words, "--edit", image, "--mask", mask, "--strength", "0.9") == 0
    files = sorted((tmp_path / "out").glob("[0-9]*-*.png"))
    assert len(files) == 2 and made["labels"] == [3, 3]
    for one, file in zip(made["images"], files):
        assert np.array_equal(np.asarray(Image.open(local(one))), np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"run": "../../etc"}, "no such run"),
        ({"strength": -0.1}, "strength"),
        ({"strength": None}, "nothing says what"),
        ({"from_scale": 2}, "no scales"),
        ({"region": "<script>"}, "region"),
        ({"size": -1}, "size on the canvas"),
        ({"image": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, None),
    ],
)
def test_programs_are_refused_in_plain_words(change, complaint, client, photo):
    run = client.predict(api_name="/runs")[0]["id"]
    wanted = {"run": run, "image": handle_file(photo), "classes": [3], "strength": 0.5}
    with pytest.raises(AppError, match=complaint):
        client.predict(**wanted | change, api_name="/edit")
