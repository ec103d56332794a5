"""Which processes and devices a command runs on."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState

from genlab.core.errors import ConfigError, GenlabError


def process_state() -> PartialState:
    """This process's rank and device. Several processes without an accelerator work together over gloo."""
    state = PartialState(cpu=_no_accelerator())
    _check_world(state.num_processes)
    return state


def make_accelerator(**options: Any) -> Accelerator:
    """An Accelerator on the machine's devices; options as Accelerate's own.

    Raises:
        ConfigError: a way to share the work that training does not know, or that Accelerate has not here.
    """
    accelerator = Accelerator(cpu=_no_accelerator(), **options)
    _check_world(accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ConfigError(
            "DeepSpeed updates weights inside the backward pass, where a non-finite gradient can no longer be stopped;"
            " shard with FSDP2 instead: `accelerate config`, FSDP, fsdp_version 2"
        )
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharding and accelerator.distributed_type != DistributedType.FSDP:
        raise ConfigError("FSDP was asked for, but Accelerate shards over several GPUs only; launch without --use_fsdp")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ConfigError("FSDP version 1 hides the parameters that checkpoints name; set fsdp_version to 2")
    return accelerator


def _no_accelerator() -> bool:
    return not torch.accelerator.is_available()


def _check_world(processes: int) -> None:
    """Accelerate can start as many separate runs as there are processes, which would all write the same files."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != launched:
        raise GenlabError(
            f"{launched} processes were launched but Accelerate sees {processes}: they would overwrite each other."
            " Check `accelerate config`, or launch with `torchrun --nproc_per_node N genlab/train.py ...`"
        )
