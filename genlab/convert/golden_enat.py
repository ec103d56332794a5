"""Recomputes the golden files of ENAT: features and logits with and without reuse, losses, masks, and samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.convert import enat
from genlab.convert.golden_parts import gradients
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.enat import ENAT
from genlab.networks.masked import Previous
from genlab.processes.mask_schedules import count_of, masked_at
from genlab.processes.masked import Masked, hide
from genlab.processes.masked_sampling import Generation, MaskedSampling

TOLERANCE = 1e-5


def forward_loss(golden: Golden) -> Iterator[Check]:
    """Passes without and with reuse, their losses and gradients, and the masks of training."""
    network, label = _network(golden), golden["in.context"][:, 0]
    codes, ids, before = golden["in.x0"], golden["in.ids"], golden["in.prev_ids"]
    masked = ids == network.mask_token
    yield Check("mid.embed", network.x_embedder(ids), TOLERANCE)
    yield Check("mid.cond", network.y_embedder(label), TOLERANCE)
    yield from _pass(network, ids, label, None, "out.{}")
    yield from _pass(network, golden["in.ids_allmask"], label, None, "out.{}_allmask")
    yield from _pass(network, before, label, None, "mid.prev_{}")
    previous = network.features(before, label), before == network.mask_token
    yield from _pass(network, ids, label, previous, "out.{}_reuse")
    again = network.features(ids, label, previous), masked
    yield from _pass(network, ids, label, again, "out.{}_reuse_nothing_new")
    process = Masked(label_smoothing=0.1)
    for suffix, state in (("", None), ("_reuse", previous)):
        loss = process.loss_at(network, codes, label, masked, state)["loss"].mean()
        yield Check(f"out.loss{suffix}", loss, TOLERANCE)
        yield from gradients(golden, f"out.grad{suffix}.", network.get_parameter, loss)
    length = codes.shape[1]
    chosen = masked_at(golden["in.sched_u"], count_of(golden["in.sched_beta_draw"].expand(len(codes)), length))
    yield Check("out.sched_masked_ids", hide(codes, chosen, network.mask_token), 0)
    yield Check("out.sched_labels", codes.masked_fill(~chosen, -1), 0)


@torch.no_grad()
def generate(golden: Golden) -> Iterator[Check]:
    """Samples under the given noise, and the likeliest tokens, revealed surest first."""
    config, network, label = golden.config, _network(golden), golden["in.context"][:, 0]
    given = Given(golden["in.token_gumbel"], golden["in.mask_gumbel"])
    for suffix, noise, confidence in (
        ("", given, config["mask_temp"]),
        ("_argmax", Given(torch.zeros_like(given.tokens), given.scores), 0.0),
    ):
        settings = MaskedSampling(
            steps=config["steps"],
            guidance=1 + config["cfg_scale"],
            temperature=config["samp_temp"],
            confidence_temperature=confidence,
        )
        side = config["input_size"]
        generation = Generation(network, label, (side, side), settings, noise)
        inputs, states = [generation.tokens], list(generation.run())
        inputs += [state.tokens for state in states[:-1]]
        yield Check(f"mid.step_ids{suffix}", torch.stack(inputs), 0)
        yield Check(f"out.tokens{suffix}", states[-1].tokens.unflatten(1, (side, side)), 0)
        if not suffix:
            counts = [(tokens == network.mask_token).sum(1)[0] for tokens in inputs]
            yield Check("mid.masked_count", torch.stack(counts), 0)


CASES: dict[str, Case] = {"forward_loss": forward_loss, "generate": generate}


@dataclass(frozen=True)
class Given:
    """The noise in a file, for all positions at every step."""

    tokens: Tensor
    """[T,B,L,V]."""
    scores: Tensor
    """[T,B,L]."""

    def of_tokens(self, step: int, masked: Tensor, vocab: int) -> Tensor:
        return self.tokens[step].gather(1, masked.unsqueeze(2).expand(-1, -1, vocab))

    def of_scores(self, step: int, masked: Tensor) -> Tensor:
        return self.scores[step].gather(1, masked)


def _network(golden: Golden) -> ENAT:
    return enat.load(ENAT(**enat.from_constructor(golden.config)), golden.group("param")).eval()


@torch.no_grad()
def _pass(network: ENAT, ids: Tensor, label: Tensor, previous: Previous | None, name: str) -> Iterator[Check]:
    """Features and logits of all positions; those of masked ones as the training pass gives them."""
    features = network.features(ids, label, previous)
    logits = network.logits(features)
    logits[ids == network.mask_token] = network(ids, label, previous)
    yield Check(name.format("feat"), features, TOLERANCE)
    yield Check(name.format("logits"), logits, TOLERANCE)
