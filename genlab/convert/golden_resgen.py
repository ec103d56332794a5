"""Recomputes the golden files of ResGen: masks and their probabilities, losses and gradients, sampling with a toy head.

The files hold what the formulas give; there is no public code and are no weights of the paper's authors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from genlab.convert.goldens import Case, Check, Golden
from genlab.nn.mixture import Mixture, components
from genlab.processes.residual_masked import MogLoss, ResidualMasked, masking
from genlab.processes.residual_sampling import Latents, Noise, ResidualSampling, Round, blank, generate, guess
from genlab.tokenization.quantizers.residual import ResidualQuantizer, ResidualVQ
from samplers import residual_fill

TOLERANCE = 1e-5
_LOSSES: dict[MogLoss, str] = {"nll": "nll", "bound": "bound", "bound_detached": "bound_sg"}

_LEAVES = ("logits", "mu", "log_scale", "shift")


class ToyHead:
    """The decoder of the golden files for rows of labels, with their parameters."""

    def __init__(self, golden: Golden, labels: list[int]):
        self.p = golden.group("param")
        self.labels = labels
        self.shared = components(self.p["A"], self.p["c"])

    def step(self, visible: Tensor, masked: Tensor, unit: Tensor) -> Mixture:
        """The mixture [B,L]."""
        p = self.p
        labels = p["cls"][self.labels[: len(visible)]].unsqueeze(1)  # [B,1,M]
        h = torch.tanh(visible @ p["w_in"] + p["pos"] + p["k_emb"][masked] + labels)  # [B,L,M]
        h = h + torch.tanh(h.mean(1, keepdim=True) @ p["w_mix"])
        low = h @ p["w_low"]
        factors = torch.cat([torch.ones_like(low[..., :1]), low], dim=-1)
        log_scale = 0.3 * torch.tanh(h @ p["w_ls"])
        return Mixture(h @ p["w_pi"] + p["b_pi"], factors, log_scale, h @ p["w_b"], *self.shared)


def formulas(golden: Golden) -> Iterator[Check]:
    """Everything that one file has, part by part."""
    for part in (_masks, _probabilities, _losses, _sampling):
        yield from part(golden)


def _masks(golden: Golden) -> Iterator[Check]:
    """Schedules, a draw of masks, and the sums of visible and masked vectors."""
    noise, n = golden["in.mask_noise"], golden["in.n"]
    for schedule in get_args(residual_fill.Schedule):
        if f"out.n_masked.{schedule}" in golden.tensors:
            cells = residual_fill.masked_cells(schedule, golden["in.r"], noise.numel())
            yield Check(f"out.n_masked.{schedule}", cells, 0.0)
    masked = residual_fill.draw_masked(noise.unsqueeze(0), n.view(1))
    yield Check("out.k", masked[0], 0.0)
    split = masking(_latents(golden).vectors(golden["in.tokens"]).unsqueeze(0), golden["in.k"].unsqueeze(0))
    seen = residual_fill.visible(golden["in.k"], noise.shape[1])
    yield Check("out.visible_mask", seen, 0.0)
    yield Check("out.z_visible", split.visible[0], TOLERANCE)
    yield Check("out.z_masked", split.target[0], TOLERANCE)


def _probabilities(golden: Golden) -> Iterator[Check]:
    """The forward process by enumeration: rows are what is given."""
    before, after, depth = golden["in.enum_k_t"], golden["in.enum_k_t1"], golden.config["enum"][1]
    yield Check("out.marginal_t", residual_fill.marginal(before, depth), TOLERANCE)
    yield Check("out.marginal_t1", residual_fill.marginal(after, depth), TOLERANCE)
    yield Check("out.transition", residual_fill.transition(before[:, None], after, depth), TOLERANCE)
    yield Check("out.posterior", residual_fill.posterior(before, after[:, None]), TOLERANCE)


def _losses(golden: Golden) -> Iterator[Check]:
    """All parts at each position, and the gradients of the three losses."""
    hit = golden["in.k"] > 0
    for kind, name in _LOSSES.items():
        leaves = {
            leaf: golden[f"in.{leaf}"].clone().requires_grad_() for leaf in ("logits", "mu", "log_scale", "shift")
        }
        mixture, z = _free(**leaves), golden["out.z_masked"]
        log_densities = mixture.log_densities(z)
        terms = ResidualMasked(mog_loss=kind).terms(mixture.log_weights(), log_densities)
        loss = (terms.nll if kind == "nll" else terms.classification + terms.regression)[hit].mean()
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values()))):
            yield Check(f"out.grad.{name}.{leaf}", gradient, TOLERANCE)
        if f"out.loss_{name}_mean" in golden.tensors:
            yield Check(f"out.loss_{name}_mean", loss, TOLERANCE)
    yield Check("out.nll", terms.nll, TOLERANCE)
    yield Check("out.cls", terms.classification, TOLERANCE)
    yield Check("out.reg", terms.regression, TOLERANCE)
    yield Check("out.resp", log_densities.softmax(-1), TOLERANCE)


@torch.no_grad()
def _sampling(golden: Golden) -> Iterator[Check]:
    """A run under given noise with all that happens between, and one without noise."""
    config = golden.config
    top_p = config.get("top_p") or 1.0
    settings = ResidualSampling(
        steps=config["steps"],
        schedule=config["schedule"],
        guidance=1 + config["cfg_scale"],
        guidance_ramp="linear" if config["cfg_linear"] else "constant",
        guide_means=float(config.get("guide_means", 0.0)),
        top_p=top_p if 0 < top_p < 1 else None,
        component_temperature=config["comp_temp"],
        noise_temperature=config["z_temp"],
        confidence_temperature=config["conf_temp"],
        literal_steps=True,
    )
    latents = _latents(golden)
    rounds = list(_rounds(golden, settings, latents, 1.0))
    yield Check("mid.step_k", _steps(done.before.masked for done in rounds), 0.0)
    yield Check("mid.step_component", _steps(done.component for done in rounds), 0.0)
    yield Check("mid.step_z", _steps(done.latent for done in rounds), TOLERANCE)
    yield Check("mid.step_conf", _steps(done.confidence[..., 0] for done in rounds), TOLERANCE)
    predicted = _steps(guess(done.before, done.latent, latents) for done in rounds)
    yield Check("mid.step_tokens_pred", predicted, 0.0)
    yield Check("out.tokens", rounds[-1].after.codes[0], 0.0)
    yield Check("out.latent", rounds[-1].after.visible[0], TOLERANCE)
    greedy = settings.model_copy(update={"noise_temperature": 0.0, "confidence_temperature": 0.0})
    rounds = list(_rounds(golden, greedy, latents, 0.0))
    yield Check("mid.argmax_step_k", _steps(done.before.masked for done in rounds), 0.0)
    yield Check("out.tokens_argmax", rounds[-1].after.codes[0], 0.0)


CASES: dict[str, Case] = {"formulas": formulas}


def _latents(golden: Golden) -> Latents:
    """A residual quantiser with the file's codebooks."""
    depth, vocab, channels = golden["in.codebooks"].shape
    config = ResidualVQ(vocab=vocab, depth=depth, shared=False, averaging=None)
    quantizer = ResidualQuantizer(config, channels)
    quantizer.load_state_dict({f"books.{d}.weight": table for d, table in enumerate(golden["in.codebooks"])})
    return Latents(quantizer.requires_grad_(False))


def _free(logits: Tensor, mu: Tensor, log_scale: Tensor, shift: Tensor) -> Mixture:
    """A mixture of any means mu [L,K,H]: all are factors, of which the bases of each component pick its own."""
    count, channels = mu.shape[1:]
    bases = torch.eye(count * channels).unflatten(1, (count, channels)).transpose(0, 1)  # [K,K*H,H]
    factors = torch.cat([torch.ones(len(mu), 1), mu.flatten(1)], dim=1)
    return Mixture(logits, factors, log_scale, shift, *components(bases, torch.zeros(count, channels)))


def _rounds(golden: Golden, settings: ResidualSampling, latents: Latents, noisy: float) -> Iterator[Round]:
    """Run the toy head under the file's noise times `noisy`."""
    config: Any = golden.config
    names = ("comp_gumbel", "z_noise", "conf_gumbel")
    given = [noisy * golden[f"in.{name}"].unsqueeze(1) for name in names]  # [T,1,L,...]
    state = blank(1, config["L"], config["H"], config["D"], torch.device("cpu"))
    counts = residual_fill.plan(settings.schedule, config["L"] * config["D"], settings.steps, literal=True)
    head = ToyHead(golden, [config["class_id"], config["null"]])
    draw = lambda step, count: Noise(*(noise[step] for noise in given))  # noqa: E731
    return generate(head, latents, state, counts, settings, draw, guided=settings.guidance != 1)


def _steps(parts: Iterator[Tensor]) -> Tensor:
    """[T,L,...] of one sample."""
    return torch.cat(list(parts))
