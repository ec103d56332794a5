"""Sums and rows over the processes of one evaluation; on a single process nothing is communicated."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(value: Tensor) -> None:
    """Replace `value`, in place, by its sum over all processes."""
    if several():
        sent = value.to(_device())
        dist.all_reduce(sent)
        value.copy_(sent)


def gather_rows(index: Tensor, rows: Tensor) -> Tensor | None:
    """Rows [n, ...] of all processes in the order of `index` int64 [n], each index once; None off the main process."""
    if several():
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        counts[dist.get_rank()] = len(index)
        add_up(counts)
        gathered_index, gathered_rows = (_gather(value, counts.tolist()) for value in (index, rows))
        if gathered_index is None or gathered_rows is None:
            return None
        index, rows = gathered_index, gathered_rows
    order = index.argsort(stable=True)
    index = index[order]
    first = torch.ones(len(index), dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return rows[order[first]]


def _gather(value: Tensor, counts: list[int]) -> Tensor | None:
    """All processes' rows on the main process, padded on the way because collectives want equal shapes."""
    padded = torch.zeros(max(counts), *value.shape[1:], dtype=value.dtype, device=_device())
    padded[: len(value)] = value.to(padded.device)
    main = dist.get_rank() == 0
    boxes = [torch.empty_like(padded) for _ in counts] if main else None
    dist.gather(padded, boxes, dst=0)
    return torch.cat([box[:count].cpu() for box, count in zip(boxes, counts)]) if boxes else None


def _device() -> torch.device:
    """Where the processes' back end wants its tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
