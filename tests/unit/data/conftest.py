"""Images on disk for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Save = Callable[..., Path]


@pytest.fixture
def save() -> Save:
    """Writes an image of one colour; extra arguments go to Pillow."""

    def write(
        path: Path, color: tuple[int, ...] | int = (200, 40, 90), size: tuple[int, int] = (20, 16), **options
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = options.pop("mode", "RGB")
        Image.new(mode, size, color).save(path, **options)
        return path

    return write


@pytest.fixture
def photo_bytes(tmp_path: Path) -> bytes:
    """A JPEG of noise, large enough that cutting it in half loses pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.fixture
def class_folders(tmp_path: Path, save: Save) -> Path:
    """Three classes of 8, 6 and 4 images; the red value tells class and image."""
    for number, (name, count) in enumerate({"b owl": 8, "a-ẞü": 6, "c": 4}.items()):
        for index in range(count):
            save(tmp_path / "data" / name / f"{index}.png", (60 * number + index, 7, 9))
    return tmp_path / "data"
