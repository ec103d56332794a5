"""Recomputes the golden files of VAR: its tokenizer's (golden_var), teacher forcing, generation, edits, schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from genlab.convert import golden_next_scale as common
from genlab.convert import golden_var
from genlab.convert.goldens import Case, Check, Golden
from genlab.processes.next_scale_sampling import NextScaleSampling
from genlab.training.optimizers import AdamW

_FLAT = {"lin": 0.15, "lin0": 0.05, "exp": 0.15}  # share of the time after warm-up at the full rate


def teacher_forcing(golden: Golden) -> Iterator[Check]:
    """Logits, losses and one step of training."""
    return common.teacher_forcing(golden, golden_var.build_tokenizer(golden, "param.vae"), common.build_network(golden))


def generation(golden: Golden) -> Iterator[Check]:
    """Greedy, drawn and mixed samples, and edits."""
    tokenizer = golden_var.build_tokenizer(golden, "param.vae")
    return common.generation(golden, tokenizer, common.build_network(golden), sampling(golden.config))


def sampling(config: Mapping[str, Any]) -> NextScaleSampling:
    """The settings that are the official arguments."""
    return NextScaleSampling(
        guidance=1 + config["cfg"],
        top_k=config["top_k"] or None,
        top_p=config["top_p"] or None,
        more_smooth=config["more_smooth"],
    )


def lr_wd_schedule(golden: Golden) -> Iterator[Check]:
    """Learning rate and weight decay over the iterations, for two groups of parameters: (1, 1) and (0.5, 0) of them."""
    for number, row in enumerate(golden.config["rows"]):
        steps = range(row["max_it"])
        rates = torch.tensor([row["peak_lr"] * _rate(row, step) for step in steps], dtype=torch.float64)
        optimizer = AdamW(weight_decay=row["wd"], weight_decay_end=row["wd_end"])
        decays = torch.tensor([optimizer.decay_at(step / (row["max_it"] - 1)) for step in steps], dtype=torch.float64)
        yield Check(f"out.lr.{number}", torch.stack([rates, 0.5 * rates], dim=1), 1e-6)
        yield Check(f"out.wd.{number}", torch.stack([decays, 0 * decays], dim=1), 1e-6)


CASES: dict[str, Case] = {
    **golden_var.CASES,
    "teacher_forcing": teacher_forcing,
    "ar": generation,
    "edit": generation,
    "lr_wd_schedule": lr_wd_schedule,
}


def _rate(row: Mapping[str, Any], step: int) -> float:
    """The factor of the peak rate: a linear rise from wp0, then one of several ways down to wpe."""
    warmup, kind, low = round(row["warmup_it"]), row["sche"], row["wpe"]
    if step < warmup:
        return row["wp0"] + (1 - row["wp0"]) * step / warmup
    done = (step - warmup) / (row["max_it"] - 1 - warmup)
    if kind == "cos":
        return low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * done))
    if kind == "lin00":
        return low + (1 - low) * (1 - done)
    if kind in _FLAT:
        left = min((1 - done) / (1 - _FLAT[kind]), 1.0)
        return low ** (1 - left) if kind == "exp" else low + (1 - low) * left
    bend = float(kind.removeprefix("lin"))  # two slopes, which meet there, half-way between 1 and the straight line
    middle = (1 + low + (1 - low) * (1 - bend)) / 2
    return 1 + (middle - 1) * done / bend if done < bend else low + (middle - low) * (1 - done) / (1 - bend)
