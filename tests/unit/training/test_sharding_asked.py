"""Sharding that Accelerate would silently leave out, or that checkpoints cannot name, is refused."""

import pytest

from genlab.commands.devices import make_accelerator
from genlab.core.errors import ConfigError


def test_fsdp_without_gpus_is_refused(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="shards over several GPUs only"):
        make_accelerator()
