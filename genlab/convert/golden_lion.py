"""Recomputes the golden files of Lion: the optimizer that genlab takes from timm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.optim import Lion
from torch import nn

from genlab.convert.goldens import Case, Check, Golden

TOLERANCE = 1e-6


def steps(golden: Golden) -> Iterator[Check]:
    """Parameters after each step under given gradients and learning rates, and the last momentum."""
    config = golden.config
    starts, gradients = golden.group("param"), golden.group("in")
    for run, options in config["variants"].items():
        parameters = {name: nn.Parameter(start.clone()) for name, start in starts.items()}
        optimizer = Lion(
            list(parameters.values()),
            lr=config["lr"][0],
            betas=tuple(config["betas"]),
            weight_decay=config["weight_decay"],
            **options,
        )
        for step in range(config["steps"]):
            optimizer.param_groups[0]["lr"] = config["lr"][step]
            for name, parameter in parameters.items():
                parameter.grad = gradients[f"grad.{name}"][step].clone()
            optimizer.step()
            for name, parameter in parameters.items():
                yield Check(f"out.{run}.{name}.step{step}", parameter.detach().clone(), TOLERANCE)
        for name, parameter in parameters.items():
            momentum: torch.Tensor = optimizer.state[parameter]["exp_avg"]
            yield Check(f"out.{run}.{name}.momentum", momentum.clone(), TOLERANCE)


CASES: dict[str, Case] = {"lion_steps": steps}
