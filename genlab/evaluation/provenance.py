"""What a report must say of the machine and the libraries behind its numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from genlab import __version__

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "accelerate", "torch-fidelity", "diffusers")


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, hardware, and the arithmetic that was allowed."""
    versions = {"genlab": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device)
        if cuda
        else f"CPU ({os.cpu_count()} cores, {torch.get_num_threads()} threads)",
        "processes": processes,
        "system": platform.platform(terse=True),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32) if cuda else False,
        "versions": versions,
    }


def label_histogram(labels: Tensor | None, class_names: tuple[str, ...]) -> dict[str, Any]:
    """How the scored images spread over classes."""
    if labels is None:
        return {"known": False}
    counts = Counter(labels.tolist())
    classes = max(len(class_names), max(counts) + 1)
    every = [counts.get(label, 0) for label in range(classes)]
    return {"known": True, "classes": classes, "least": min(every), "most": max(every), "counts": every}
