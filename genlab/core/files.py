"""Files and folders that are either whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genlab.core.errors import GenlabError

_PREFIX = ".unfinished-"


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` when the block succeeds, removed when it fails.

    Raises:
        GenlabError: the disk is full; nothing half-written is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a new folder. An existing folder at `path` is replaced once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}"
    temporary.mkdir()
    try:
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        if path.exists():
            replaced = path.parent / f"{_PREFIX}{uuid.uuid4().hex[:8]}-old-{path.name}"
            path.rename(replaced)
            temporary.rename(path)
            shutil.rmtree(replaced)
        else:
            temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`, atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed writer left in `folder`."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _named(error: OSError, path: Path) -> OSError | GenlabError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free / 2**20
        return GenlabError(f"{path}: the disk is full ({free:.0f} MiB left); nothing half-written was kept")
    return error
