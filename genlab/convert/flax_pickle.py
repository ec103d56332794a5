"""Pickles of JAX training code, read without running anything that is in them: nested dicts of arrays.

Arrays of NumPy and JAX become tensors, flax's frozen dicts plain ones. Objects of other classes, such as an
optimizer's state, are left out: a `Placeholder` stands in their place.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.convert.checkpoint_files import Placeholder
from genlab.core.errors import CheckpointError

_PROTOCOLS = (b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How such files begin; torch's own pickles are of protocol 2."""
_NUMPY = {
    "multiarray": ("numpy._core.multiarray", ("_reconstruct", "scalar")),
    "numeric": ("numpy._core.numeric", ("_frombuffer",)),
}


def matches(path: Path) -> bool:
    """Whether a file is a bare pickle. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) in _PROTOCOLS
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def read(path: Path) -> Any:
    """What a pickle holds, on the CPU. Raises CheckpointError if it is damaged."""
    try:
        with path.open("rb") as file:
            return _Reader(file).load()
    except Exception as error:  # damaged pickles fail in any way
        raise CheckpointError(f"{path}: cannot be read as a pickle, it may be half a file ({error})") from error


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The arrays of nested dicts as float32 tensors, named by their paths: "DiTBlock_0/Dense_0/kernel"."""
    return dict(_walk(tree, prefix))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield prefix + str(name), torch.from_numpy(np.array(value, dtype=np.float32))


def _jax_array(rebuild: Callable[..., Any], arguments: tuple[Any, ...], state: Any, _about: Any) -> Any:
    """In place of the hook that would put the array on a device."""
    array = rebuild(*arguments)
    array.__setstate__(state)
    return array


_PLAIN: dict[tuple[str, str], Any] = {
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("flax.core.frozen_dict", "FrozenDict"): dict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        package, _, part = module.rpartition(".")
        if package in ("numpy.core", "numpy._core") and part in _NUMPY:
            ours, names = _NUMPY[part]
            if name in names:
                return getattr(importlib.import_module(ours), name)
        return Placeholder
