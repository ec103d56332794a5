"""Recomputes the golden files of M-VAR: the Mamba-2 layer, teacher forcing and generation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genlab.convert import golden_var_generator
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.weights import fill_all
from genlab.nn.mamba2 import Mamba2, Memory

_TIGHT, _GRADIENT = 1e-5, 1e-4


def mamba2_mixer(golden: Golden) -> Iterator[Check]:
    """The layer on a sequence, in two parts with the memory between them, and its gradients."""
    layer = Mamba2(golden.config["d_model"], golden.config["d_state"])
    fill_all(layer.state_dict(), golden.group("param"), str(golden.path))
    u, cut = golden["in.u"].clone().requires_grad_(), golden.config["cut"]
    y = layer(u)
    yield Check("out.y", y, _TIGHT)
    memory = Memory()
    with torch.no_grad():
        parts = []
        for name, part in (("at_cut", u[:, :cut]), ("end", u[:, cut:])):
            parts.append(layer(part, memory))
            assert memory.recent is not None
            assert memory.state is not None
            yield Check(f"out.conv_state_{name}", memory.recent, _TIGHT)
            yield Check(f"out.ssm_state_{name}", memory.state, _TIGHT)
        yield Check("out.y", torch.cat(parts, dim=1), _TIGHT)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert u.grad is not None
    yield Check("out.grad_u", u.grad, _GRADIENT)
    for name in golden.group("out.grad"):
        gradient = layer.get_parameter(name).grad
        assert gradient is not None
        yield Check(f"out.grad.{name}", gradient, _GRADIENT)


CASES: dict[str, Case] = {
    "mamba2_mixer": mamba2_mixer,
    "teacher_forcing": golden_var_generator.teacher_forcing,
    "ar": golden_var_generator.generation,
}
