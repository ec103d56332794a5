"""Recomputes the golden files of FlexVAR: its tokenizer's (golden_flexvar), teacher forcing, generation, edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from genlab.convert import golden_flexvar
from genlab.convert import golden_next_scale as common
from genlab.convert.goldens import Case, Check, Golden
from genlab.processes.next_scale_sampling import NextScaleSampling

_DRAWN_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)  # the reference takes the likeliest codes of all others


def teacher_forcing(golden: Golden) -> Iterator[Check]:
    """Logits, losses and gradients."""
    tokenizer = golden_flexvar.build_tokenizer(golden, "param.vae")
    return common.teacher_forcing(golden, tokenizer, common.build_network(golden))


def generation(golden: Golden) -> Iterator[Check]:
    """Greedy and drawn samples of several schedules, and edits."""
    tokenizer = golden_flexvar.build_tokenizer(golden, "param.vae")
    return common.generation(golden, tokenizer, common.build_network(golden), sampling(golden.config))


def sampling(config: Mapping[str, Any]) -> NextScaleSampling:
    """The settings that are the official arguments; one of the two forms of guidance is not ramped."""
    plain = config["used_llamagen_cfg"]
    return NextScaleSampling(
        guidance=config["cfg"] if plain else 1 + config["cfg"],
        guidance_ramp=not plain,
        ramp_scales=10,
        top_k=config["top_k"] or None,
        top_p=config["top_p"] or None,
        trained_side=config["max_pn"],
        drawn_sides=_DRAWN_SIDES,
        forbidden=tuple(config["invalid_ids"] or ()),
    )


CASES: dict[str, Case] = {
    **golden_flexvar.CASES,
    "teacher_forcing": teacher_forcing,
    "ar": generation,
    "edit": generation,
}
