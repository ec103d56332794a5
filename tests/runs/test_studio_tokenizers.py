"""The Tokenizers panel: in a real browser, and through its named endpoints."""

import re
import shutil

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from studio_page import button, expect, fill, screenshot, status, tab
from studio_server import studio

from genlab.core.contracts import to_float, to_uint8
from genlab.studio.uploads import decode_upload, fit
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.storage import load_tokenizer, save_tokenizer
from genlab.tokenization.vq import VQ


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """A generator on pixels and a tokenizer."""
    folder = tmp_path_factory.mktemp("with-tokenizers")
    shutil.copytree(trained, folder / "tiny")
    config = VQ(
        width=16,
        multipliers=(1, 2),
        blocks=1,
        mid_attention=False,
        channels=8,
        groups=4,
        quantizer=ResidualVQ(vocab=16, depth=3),
    )
    facts = {"name": "r<b>vq", "image_size": 16, "data": "digits"}
    save_tokenizer(folder / "rvq", config, config.build(16), facts)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    """The studio over both."""
    with studio(runs) as found:
        yield found


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photograph by a camera that was turned."""
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((80, 60)).save(file, exif=exif, quality=95)
    return file


def captions(page):
    """Of all pictures in sight."""
    return page.locator(".tiles:visible .caption-label")


@pytest.mark.browser
def test_an_image_of_the_data_is_taken_apart(page):
    tab(page, "Tokenizers")
    expect(page.locator(".card:visible")).to_contain_text("r<b>vq")
    expect(page.locator(".card:visible")).to_contain_text("192 codes of 16")
    screenshot(page, "tokenizers-ready")
    fill(page, "Image number", 7)
    button(page, "Reconstruct").click()
    expect(status(page)).to_have_text(re.compile(r"^Reconstructed in "))
    expect(page.locator(".measures")).to_contain_text("PSNR")
    expect(page.locator(".missing")).to_contain_text("LPIPS needs")
    steps, codes = ["Depth 1", "Depths 1 to 2", "Depths 1 to 3"], [f"Depth {depth}: 8 × 8" for depth in (1, 2, 3)]
    expect(captions(page)).to_have_text(["Original", "Reconstruction", "Difference × 4", *steps, *codes])
    expect(page.locator(".usage tbody tr")).to_have_count(3)
    expect(page.locator(".usage")).to_contain_text("In 64 images of digits")
    page.wait_for_function("[...document.querySelectorAll('.tiles img')].every(i => i.complete && i.naturalWidth)")
    screenshot(page, "tokenizers")


@pytest.mark.browser
def test_an_image_is_sent_and_a_damaged_one_refused(page, photo, tmp_path):
    tab(page, "Tokenizers")
    page.get_by_label("An image of mine").check()
    button(page, "Reconstruct").click()
    expect(page.get_by_text("choose a PNG, JPEG or WebP image first").first).to_be_visible()
    send(page, photo)
    button(page, "Reconstruct").click()
    expect(status(page)).to_have_text(re.compile(r"^Reconstructed in "))
    expect(captions(page).first).to_have_text("Original")
    screenshot(page, "tokenizers-sent")
    page.locator("#sent").get_by_label("Remove Image").click()
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    send(page, damaged)
    button(page, "Reconstruct").click()
    expect(page.get_by_text("this is not a PNG, JPEG or WebP image, or it is damaged").first).to_be_visible()
    expect(button(page, "Reconstruct")).to_be_enabled()


def send(page, file):
    """Choose a file and wait until it has arrived."""
    with page.expect_response(re.compile("/upload")):
        page.locator("#sent input[type=file]").set_input_files(file)
    expect(page.locator("#sent img")).to_have_count(1)


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    found = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


@torch.no_grad()
def test_programs_get_what_the_tokenizer_makes(client, runs, photo):
    (entry,) = client.predict(api_name="/tokenizers")
    assert (entry["name"], entry["vocab"], entry["image_size"]) == ("r<b>vq", 16, 16)
    made = client.predict(entry["id"], image=handle_file(photo), counted=16, api_name="/reconstruct")
    tokenizer = load_tokenizer(runs / "rvq")
    image = fit(decode_upload(photo.read_bytes()), 16).unsqueeze(0)
    codes = tokenizer.encode(to_float(image))
    original, reconstruction, _ = (pixels(row["image"]) for row in made["images"])
    assert torch.equal(original, image[0])
    assert torch.equal(reconstruction, to_uint8(tokenizer.decode(codes))[0])
    assert [row["caption"] for row in made["steps"]] == ["Depth 1", "Depths 1 to 2", "Depths 1 to 3"]
    assert made["usage"]["groups"][2]["used"] == len(codes[..., 2].unique())


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"tokenizer": "../rvq"}, "no such tokenizer"),
        ({"data": "/etc"}, "not offered"),
        ({"number": -1}, "image number"),
        ({"counted": 10**9}, "images to count"),
        ({"data": "", "image": {"path": "/etc/passwd"}}, "no such upload"),
        ({"data": "", "image": None}, "choose a PNG"),
    ],
)
def test_programs_are_refused_in_plain_words(change, complaint, client):
    (entry,) = client.predict(api_name="/tokenizers")
    wanted = {"tokenizer": entry["id"], "data": "digits", "number": 0, "counted": 0}
    with pytest.raises(AppError, match=complaint):
        client.predict(**wanted | change, api_name="/reconstruct")


def pixels(file):
    """uint8 [3,h,w] of a file that an endpoint gave."""
    path = file["path"] if isinstance(file, dict) else file
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
