"""Settings taken from an image: the studio's own give back their order, others are refused in words."""

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from gradio.utils import get_upload_folder
from PIL import Image
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.studio.catalog import Catalog
from genlab.studio.orders import Limits, place
from genlab.studio.pictures import KEY, to_png
from genlab.studio.remade import order_behind


@pytest.fixture
def scan(tmp_path):
    write_run(tmp_path / "runs" / "tiny")
    write_run(tmp_path / "runs" / "other", classes=3)
    return Catalog([tmp_path / "runs"]).refresh()


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """Puts bytes where Gradio puts uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def send(data):
        file = Path(get_upload_folder()) / "image.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return str(file)

    return send


def tiny(scan):
    return next(entry for entry in scan.entries.values() if entry.name == "tiny")


def image(told):
    return to_png(torch.zeros(3, 8, 8, dtype=torch.uint8), told)


def made(scan, **changes):
    order = place(tiny(scan), [3, "7", 10], 2, 5, {"steps": 9}, Limits())
    return {**order.metadata(1), **changes}


def test_an_image_gives_back_the_order_that_made_it(scan, sent):
    order = place(tiny(scan), [3, "7", 10], 2, 5, {"steps": 9, "guidance_interval": [0.1, 0.5]}, Limits())
    assert order_behind(sent(image(order.metadata(4))), scan, Limits()) == order


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"run": "elsewhere"}, "no run of that name"),
        ({"run": ["x"] * 1000}, "no run of that name"),
        ({"run": "other"}, "class"),
        ({"seed": -1}, "seed"),
        ({"seed": float("nan")}, "seed"),
        ({"per_class": 10**400}, "images per class"),
        ({"classes": {"a": 1}}, "at least one class"),
        ({"classes": [[[1]]]}, "class"),
        ({"sampling": [1, 2]}, "sampling"),
        ({"sampling": {"stepz": 3}}, "stepz"),
        ({"sampling": {"steps": 10**9}}, "steps"),
        ({"sampling": {"guidance": float("inf")}}, "guidance"),
    ],
)
def test_an_image_that_says_nonsense_is_refused(scan, sent, change, complaint):
    with pytest.raises(GenlabError, match=complaint):
        order_behind(sent(image(made(scan, **change))), scan, Limits())


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_text(kind, data):
    """A PNG file with a text chunk of our own making."""
    plain = io.BytesIO()
    Image.new("L", (8, 8)).save(plain, format="PNG")
    return plain.getvalue()[:33] + chunk(kind, data) + plain.getvalue()[33:]


def photo(format):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", "choose|not a PNG"),
        (b"\x89PNG\r\n\x1a\n", "not a PNG"),
        (photo("PNG"), "not made here"),
        (photo("JPEG"), "not made here"),
        (photo("GIF"), "not a PNG"),
        (with_text(b"tEXt", KEY.encode() + b"\0" + b"[" * 50_000), "damaged"),
        (with_text(b"tEXt", KEY.encode() + b"\0" + b"7"), "damaged"),
        (with_text(b"tEXt", KEY.encode() + b"\0" + b"9" * 50_000), "damaged"),
        (with_text(b"tEXt", KEY.encode() + b"\0{}"), "does not say"),
        (with_text(b"zTXt", KEY.encode() + b"\0\0" + zlib.compress(b"[" * 2**26)), "damaged|not a PNG"),  # a bomb
        (with_text(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), "too many pixels|not a PNG"),
    ],
)
def test_foreign_and_damaged_files_are_refused(scan, sent, data, complaint):
    with pytest.raises(GenlabError, match=complaint):
        order_behind(sent(data), scan, Limits())


def test_only_uploads_are_read(scan, sent, tmp_path):
    outside = tmp_path / "image.png"
    outside.write_bytes(image(made(scan)))
    sent(b"")
    for path in (str(outside), {"path": str(outside)}, "/etc/passwd", "../../etc/passwd", ["x"], 7, "\0"):
        with pytest.raises(GenlabError):
            order_behind(path, scan, Limits())
