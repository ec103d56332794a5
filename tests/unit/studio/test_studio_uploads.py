"""Uploads: what is taken comes out as the data pipeline would make it; everything else is refused in words."""

import io
import struct
import zlib

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genlab.data.transforms import center_crop
from genlab.studio import uploads
from genlab.studio.uploads import UploadError, check_upload, decode_upload, fit, receive


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width=40, height=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width, height):
    """A PNG that promises pixels and has hardly any."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_cropped_as_the_data_are(form):
    data = encoded(picture(), form)
    expected = np.asarray(center_crop(Image.open(io.BytesIO(data)).convert("RGB"), 16))
    assert np.array_equal(fit(decode_upload(data), 16).permute(1, 2, 0), expected)


def test_a_camera_held_upright_gives_an_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    assert decode_upload(encoded(picture(40, 24), "JPEG", exif=exif)).size == (24, 40)


def test_transparency_and_16_bits_become_8_bit_colours():
    assert decode_upload(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert decode_upload(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "not a PNG"),
        (b"<svg onload='alert(1)'/>", "not a PNG"),
        (encoded(picture(), "GIF"), "not a PNG"),
        (encoded(picture(), "TIFF"), "not a PNG"),
        (png_header(5000, 4001), "5,000 × 4,001 pixels"),
        (png_header(20_000, 20_000), "too many"),
        (png_header(2**31 - 1, 2**31 - 1), "too many"),
        (bytes(uploads.LARGEST_BYTES + 1), "too large"),
    ],
)
def test_the_header_is_enough_to_refuse(data, words, monkeypatch):
    monkeypatch.setattr(uploads, "decode", lambda *given: pytest.fail("decoded"))
    with pytest.raises(UploadError, match=words):
        check_upload(data)
    with pytest.raises(UploadError, match=words):
        decode_upload(data)


def test_damaged_pixels_and_strips_are_refused():
    whole = encoded(picture())
    check_upload(whole[:-400])
    with pytest.raises(UploadError, match="damaged"):
        decode_upload(whole[:-400])
    with pytest.raises(UploadError, match="square"):
        fit(picture(1000, 2), 16)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8X"])
)
def test_noise_gives_an_image_or_a_refusal(noise, start):
    try:
        decode_upload(start + noise)
    except UploadError as error:
        assert len(str(error)) < 300


def test_only_what_gradio_received_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "received"))
    inside = tmp_path / "received" / "x" / "image.png"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(encoded(picture()))
    assert receive(str(inside)) == receive({"path": str(inside)}) == inside.read_bytes()
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(picture()))
    (inside.parent / "link.png").symlink_to(outside)
    away = inside.parent / ".." / ".." / ".." / "outside.png"
    for path in (outside, inside.parent / "link.png", away, inside.parent, "/dev/zero", "a\0b", 7, "http://x/y.png"):
        with pytest.raises(UploadError, match="no such upload"):
            receive({"path": path})
    for nothing in (None, "", {}, {"path": None}):
        with pytest.raises(UploadError, match="choose"):
            receive(nothing)
    assert get_upload_folder() == str(tmp_path / "received")
