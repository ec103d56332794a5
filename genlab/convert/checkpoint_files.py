"""Reading published checkpoint files without running anything that is in them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from genlab.core.errors import CheckpointError
from genlab.core.weights import read_tensors

_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}
_CONTENTS = (
    "ema",
    "model",
    "state_dict",
    "trainer",
    "var_wo_ddp",
    "mvar_wo_ddp",
    "vae_local",
)  # where files keep the weights, best first


class Placeholder(dict[Any, Any]):
    """Stands where a file has an object of a class that is not trusted: takes every argument and does nothing."""

    def __new__(cls, *_args: Any, **_options: Any) -> Placeholder:
        return dict.__new__(cls)

    def __init__(self, *_args: Any, **_options: Any):
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __setstate__(self, _state: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        """Some pickled objects are filled like lists, ..."""

    def extend(self, _items: Any) -> None:
        """... or several items at a time."""


class _Unpickler(pickle.Unpickler):
    """Finds tensors and plain containers; everything else becomes a placeholder, and nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        return _PLAIN.get((module, name), Placeholder)


_RESTRICTED = ModuleType("restricted_pickle")
_RESTRICTED.Unpickler = _Unpickler  # type: ignore[attr-defined]
_RESTRICTED.load = lambda file, **options: _Unpickler(file, **options).load()  # type: ignore[attr-defined]


def read_checkpoint(path: Path) -> Any:
    """The content of a .safetensors, .pt, .pth, .ckpt or .bin file, on the CPU.

    Objects of other classes than tensors and plain containers (what Lightning writes beside the weights) are left out:
    a `Placeholder` stands in their place.

    Raises:
        CheckpointError: absent, truncated or no checkpoint.
    """
    if path.suffix == ".safetensors" and not is_zipfile(path):  # some published ones are torch.save's archives
        return read_tensors(path)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds other objects too
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: truncated or no checkpoint ({type(error).__name__}: {reason})") from error


def find_state(content: Any, where: str) -> dict[str, Tensor]:
    """The named tensors in a checkpoint's content: averaged weights if it has them, else the plain ones.

    Raises:
        CheckpointError: it holds no named tensors.
    """
    for name in _CONTENTS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping) and content[name]:
            return find_state(content[name], where)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: holds no weights by name but a {type(content).__name__}")
    tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{where}: holds no weights (its entries: {', '.join(map(str, list(content)[:5]))})")
    return tensors
