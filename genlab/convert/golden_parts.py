"""What the golden files of denoisers have in common: recorded layers, gradients, training steps, guided labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genlab.convert.goldens import Check, Golden
from genlab.convert.sit_reference import diffusion_form
from genlab.core.contracts import Network
from genlab.networks.dit import DiT

FORWARD, TRAJECTORY = 1e-5, 1e-4


def trained(golden: Golden, network: Network, loss: Callable[[int, Tensor], Tensor]) -> Iterator[Check]:
    """Train as `config` says; `loss` takes the step and its labels after label dropout, and gives [B]."""
    config = golden.config
    average = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config["lr"],
        betas=tuple(config.get("betas", (0.9, 0.999))),
        eps=config.get("eps", 1e-8),
        weight_decay=config.get("weight_decay", 0.0),
    )
    for step in range(config["steps"]):
        drop = golden["in.drop_u"][step] < config["model"].get("class_dropout_prob", 0.1)
        error = loss(step, torch.where(drop, network.num_classes, golden["in.y"][step])).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - config["ema_decay"])
        yield Check(f"out.loss_{step}", error, TRAJECTORY)
    for prefix, state in (("out.model", network.state_dict()), ("out.ema", average)):
        for key, value in state.items():
            name = f"{prefix}.{key}"
            yield Check(name, _but_for_keys(key, value, golden.tensors.get(name)), TRAJECTORY)


@contextmanager
def recorded(network: DiT) -> Iterator[dict[str, Tensor]]:
    """Within the block, the outputs of the network's parts in its last forward, by the golden files' names."""
    modules: dict[str, nn.Module] = {
        "t_emb": network.t_embedder,
        "y_emb": network.y_embedder,
        "attn0": network.get_submodule("blocks.0.attn"),
        "mlp0": network.get_submodule("blocks.0.mlp"),
        "block0": network.blocks[0],
        "block_last": network.blocks[-1],
        "final_tokens": network.final_layer,
    }
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, out, name=name: seen.update({name: out}))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gradients(
    golden: Golden, prefix: str, parameter: Callable[[str], Tensor], loss: Tensor, tolerance: float = TRAJECTORY
) -> Iterator[Check]:
    """The gradients of the mean `loss` that the file holds, if any; zero for what the loss does not depend on.

    Args:
        prefix: of their full names, such as "out.grad.".
        parameter: what the rest of a name stands for.
    """
    names = [name for name in golden.tensors if name.startswith(prefix)]
    leaves = [parameter(name.removeprefix(prefix)) for name in names]
    found = torch.autograd.grad(loss.mean(), leaves, allow_unused=True, materialize_grads=True) if leaves else ()
    yield from (Check(name, gradient, tolerance) for name, gradient in zip(names, found))


def scale_of(run: Mapping[str, Any]) -> float:
    """The guidance scale of a run: 1 where none is given."""
    scale = run.get("cfg_scale")
    return 1.0 if scale is None else float(scale)


def sde_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """SiT's names of an SDE's options, as ARFlow and FiT have them too, as those of `FlowSampling`."""
    return {
        "guidance": scale_of(run),
        "diffusion": diffusion_form(run.get("diffusion_form", "sigma")),
        "diffusion_norm": run.get("diffusion_norm", 1.0),
        "last_step": (run.get("last_step", "Mean") or "none").lower(),
        "last_step_size": run.get("last_step_size") or 0.04,
    }


def sde_steps(run: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[int, float | None]:
    """SiT's `num_steps`, points of a grid, as `steps` of `FlowSampling`, and the time to begin at (None: the start).

    Steps with noise lead from point to point, so a single point leaves nothing but the last step, if there is one.
    """
    noisy, last = run["num_steps"] - 1, options["last_step"] != "none"
    begin = None if noisy else 1 - last * options["last_step_size"]
    return max(noisy, 1) + last, begin


def with_null(network: Network, label: Tensor) -> Tensor:
    """The labels of a guided forward of 2n rows for n labels."""
    return torch.cat([label, torch.full_like(label, network.null_label)])  # [2n]


def _but_for_keys(name: str, value: Tensor, expected: Tensor | None) -> Tensor:
    """`value`, but with the key third of an attention bias as expected.

    A shift of all keys changes no softmax, so its gradient is rounding noise, which Adam scales up to whole steps.
    """
    if expected is None or not name.endswith("attn.qkv.bias"):
        return value
    q, _, v = value.detach().chunk(3)
    return torch.cat([q, expected.chunk(3)[1], v])
