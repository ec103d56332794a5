"""What a flow makes of noise, kept on disk: labels and samples, and of the noise its seed alone.

The noise of pair i is the first draw of the stream (seed, i), so that it need not be stored; the label is i modulo the
number of classes. "Flow Straight and Fast", Liu et al., ICLR 2023, section 2.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import whole_file
from genlab.core.generator import Generator
from genlab.core.weights import checksum
from genlab.processes.flow_sampling import FlowSampling
from samplers.noise import SampleRng, spawn

_BATCH = 250
_SEED = 0x5EED  # pairs' noise is none of the training's


@dataclass(frozen=True)
class Pairs:
    """Pairs of one flow, on the device of the samples."""

    data: Tensor
    """[n,C,H,W], float16 as stored."""
    label: Tensor
    """int64 [n]."""
    seed: int

    @classmethod
    def of(cls, file: Path, teacher: Generator, sampling: FlowSampling, count: int, seed: int) -> Pairs:
        """Those in `file`, which are made first if it does not exist.

        Raises:
            DataError: damaged, or pairs of another teacher, number, seed or way to sample.
        """
        origin = describe(teacher, sampling, count, seed)
        if not file.exists():
            made = make(teacher, sampling, count, seed)
            with whole_file(file) as part:
                save_file({"data": made.data, "label": made.label}, part, {"origin": json.dumps(origin)})
        return cls.read(file, origin, teacher.device)

    @classmethod
    def read(cls, file: Path, origin: dict[str, Any], device: torch.device) -> Pairs:
        """Those in `file`, which must be of `origin`. Raises DataError."""
        try:
            with safe_open(file, "pt", device=str(device)) as opened:
                found = json.loads((opened.metadata() or {}).get("origin", "{}"))
                data, label = opened.get_tensor("data"), opened.get_tensor("label")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: no pairs of a flow ({error}); delete it to have them made") from error
        for key, value in origin.items():
            if found.get(key) != value:
                raise DataError(
                    f"{file}: pairs with {key} {found.get(key)!r}, this recipe wants {value!r}; name another file"
                )
        return cls(data, label, origin["seed"])

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(data, noise) float32 [B,C,H,W] and labels [B] of the pairs `index` int64 [B]."""
        noise = SampleRng(self.seed, index).normal(*self.data.shape[1:])
        return self.data[index].float(), noise, self.label[index]


def describe(teacher: Generator, sampling: FlowSampling, count: int, seed: int) -> dict[str, Any]:
    """JSON-able: what pairs depend on; the weights by their checksum."""
    settings = {key: sampling.model_dump(mode="json")[key] for key in ("sampler", "steps", "guidance")}
    shape = list(teacher.tokenizer.spec.shape)
    return {"count": count, "seed": seed ^ _SEED, "weights": checksum(teacher.network), "shape": shape, **settings}


@torch.no_grad()
def make(teacher: Generator, sampling: FlowSampling, count: int, seed: int) -> Pairs:
    """Pairs 0 .. count - 1 of a teacher, on its device."""
    spec, network, seed = teacher.tokenizer.spec, teacher.network, seed ^ _SEED
    label = torch.arange(count, device=teacher.device) % max(network.num_classes, 1)
    data = [
        teacher.process.sample(
            network, label[first : first + _BATCH], spec, spawn(seed, range(first, end), teacher.device), sampling
        ).half()
        for first in range(0, count, _BATCH)
        if (end := min(first + _BATCH, count))
    ]
    return Pairs(torch.cat(data), label, seed)
