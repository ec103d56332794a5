"""Decoding: every common kind of file becomes upright 8-bit RGB, everything else is called unreadable."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genlab.data.decode import Unreadable, decode


def _pixel(path, place=(5, 5)):
    image = decode(path)
    assert image.mode == "RGB"
    return image.getpixel(place)


def _close(got, expected, tolerance):
    return max(abs(a - b) for a, b in zip(got, expected)) <= tolerance


@pytest.mark.parametrize(
    ("name", "tolerance", "options"),
    [
        ("a.png", 0, {}),
        ("a.jpg", 6, {}),
        ("a.webp", 6, {}),
        ("lossless.webp", 0, {"lossless": True}),
        ("a.bmp", 0, {}),
        ("a.gif", 30, {}),
    ],
)
def test_color_files(tmp_path, save, name, tolerance, options):
    assert _close(_pixel(save(tmp_path / name, **options)), (200, 40, 90), tolerance)


def test_cmyk_jpeg(tmp_path, save):
    assert _close(_pixel(save(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK")), (255, 0, 0), 6)


@pytest.mark.parametrize(("mode", "color"), [("L", 77), ("1", 255), ("LA", (77, 255))])
def test_grey(tmp_path, save, mode, color):
    grey = color if isinstance(color, int) else color[0]
    assert _pixel(save(tmp_path / "a.png", color, mode=mode)) == (grey, grey, grey)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((16, 16), 0x80FF, dtype=np.uint16)).save(tmp_path / "a.png")
    assert _pixel(tmp_path / "a.png") == (128, 128, 128)


def test_transparency_is_composited_on_white(tmp_path, save):
    assert _pixel(save(tmp_path / "clear.png", (10, 20, 30, 0), mode="RGBA")) == (255, 255, 255)
    assert _close(_pixel(save(tmp_path / "half.png", (0, 0, 0, 128), mode="RGBA")), (127, 127, 127), 1)
    assert _pixel(save(tmp_path / "key.png", (1, 2, 3), transparency=(1, 2, 3))) == (255, 255, 255)
    assert _pixel(save(tmp_path / "grey.png", (9, 0), mode="LA")) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
@pytest.mark.parametrize(("transparent", "expected"), [(None, (255, 0, 0)), (1, (255, 255, 255))])
def test_palettes(tmp_path, name, transparent, expected):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.save(tmp_path / name, **({} if transparent is None else {"transparency": transparent}))
    assert _pixel(tmp_path / name) == expected


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert _pixel(tmp_path / "a.gif") == (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    upright = decode(tmp_path / "a.png")
    assert upright.size == (10, 30)
    assert upright.getpixel((5, 2)) == (0, 0, 255)


def test_damaged_files_say_why(tmp_path, photo_bytes):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(photo_bytes[: len(photo_bytes) // 2])
    for name, reason in [("empty.jpg", "empty file"), ("text.jpg", "not an image"), ("cut.jpg", "truncated")]:
        with pytest.raises(Unreadable, match=reason):
            decode(tmp_path / name)
    with pytest.raises(Unreadable, match="No such file"):
        decode(tmp_path / "absent.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@settings(deadline=None)
@given(data=st.data())
def test_broken_bytes_never_raise_anything_else(kind, data):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content[: data.draw(st.integers(0, len(content)))])).mode == "RGB"
    except Unreadable as error:
        assert str(error)
