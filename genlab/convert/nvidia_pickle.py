"""NVIDIA's network pickles, read without running anything that is in them.

The files hold whole Python objects together with the source code of their classes, which ordinary unpickling executes.
Here every such object becomes a record of its class name and state, tensors and plain containers are the only real
things, and any other name in the file is refused.
"""

from __future__ import annotations

import collections
import importlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import CheckpointError


class Record(dict[str, Any]):
    """An object of a class that is not loaded: `kind` is its name, the entries are its state."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


def read(path: str | Path) -> dict[str, Any]:
    """The dict in a pickle. Raises CheckpointError if it is damaged, or holds anything but networks and tensors."""
    try:
        with Path(path).open("rb") as file:
            content = _Reader(file).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # damaged pickles fail in any way
        raise CheckpointError(f"{path}: cannot be read as a pickle, it may be half a file ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no dict of networks")
    return content


def state_dict(module: Record) -> dict[str, Tensor]:
    """The parameters and buffers of a recorded module and of all below it, by their full names, in float32."""
    return dict(_walk(module, ""))


def _walk(module: Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    hidden = module.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        for name, value in module.get(group, {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield prefix + name, value.detach().float()
    for name, child in module.get("_modules", {}).items():
        if isinstance(child, Record):
            yield from _walk(child, f"{prefix}{name}.")


def _reconstruct(meta: dict[str, Any]) -> Record:
    """In place of the hook that would execute `meta["module_src"]`."""
    record = Record(meta["state"])
    record.kind = str(meta["class_name"])
    return record


def _storage(content: bytes) -> Any:
    """In place of torch's own, which unpickles without restraint."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("dnnlib.util", "EasyDict"): Record,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in _NUMPY and name in ("scalar", "_reconstruct"):
            return getattr(importlib.import_module("numpy._core.multiarray"), name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module.startswith("torch.nn.modules."):
            return type(name, (Record,), {"kind": name})
        raise CheckpointError(f"names {module}.{name}, which no network needs; it was not loaded")
