"""What the golden files of next-scale generators have in common: teacher forcing, a training step, generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.convert import var
from genlab.convert.goldens import Check, Golden
from genlab.core.contracts import Network
from genlab.networks.next_scale import NextScaleNetwork
from genlab.nn.scales import grids_of, lengths_of
from genlab.processes.next_scale_sampling import Drawn, Edit, MultiscaleTokenizer, NextScaleSampling, Noise, generate
from genlab.training.optimizers import AdamW
from samplers.categorical import choose, filtered, greedy

LOGITS, LOSS, PARAMETER, EXACT = 1e-4, 1e-5, 1e-5, 0.0
_MIXTURE = 1e-3  # of code vectors, whose low temperatures enlarge the rounding of logits two hundred times


class Tokenizer(MultiscaleTokenizer, Protocol):
    """What is used here of a tokenizer."""

    def reconstruct(self, maps: Tensor) -> Tensor: ...


def build_network(golden: Golden) -> NextScaleNetwork:
    """The file's network."""
    config, state = golden.config["var"], golden.group("param.var")
    family = var.family_of(state)
    assert family is not None, "the file's parameters are of no next-scale network"
    arguments = var.arguments(state, config["num_heads"], tuple(config["patch_nums"]))
    return var.load(var.NETWORKS[family](**arguments), state)


def schedule(golden: Golden) -> tuple[int, ...]:
    """The scales that the file uses."""
    return tuple(golden.config.get("scales", golden.config["var"]["patch_nums"]))


def teacher_forcing(golden: Golden, tokenizer: Tokenizer, network: NextScaleNetwork) -> Iterator[Check]:
    """Codes and inputs of images, logits, and losses with and without label smoothing."""
    scales = schedule(golden)
    with torch.no_grad():
        codes = tokenizer.encode(golden["in.image"], scales)
        inputs = tokenizer.inputs(codes, scales)
        yield Check("out.gt_BL", codes, EXACT)
        yield Check("out.var_input", inputs, 1e-5)
        if "out.logits_nodrop" in golden.tensors:
            yield Check("out.logits_nodrop", network(inputs, golden["in.label"].long(), scales), LOGITS, absolute=True)
        yield from _after_first_block(golden, network, inputs)
    label = dropped(golden, network)
    if "mid.label_after_drop" in golden.tensors:
        yield Check("mid.label_after_drop", label, EXACT)
    logits = network(inputs, label, scales)
    yield Check("out.logits", logits, LOGITS, absolute=True)
    for name, smoothing in (("ls0", 0.0), ("ls", golden.config["label_smoothing"])):
        errors = F.cross_entropy(logits.mT, codes, label_smoothing=smoothing, reduction="none")  # [B,L]
        if f"out.token_loss_{name}" in golden.tensors:
            yield Check(f"out.token_loss_{name}", errors, LOSS)
        yield Check(f"out.loss_{name}", errors.mean().view(1), LOSS)
    loss = errors.mean()
    if "optimizer" in golden.config:
        yield from _training_step(golden, network, loss, logits, codes)
    else:
        yield from _gradients(golden, network, loss)


def generation(
    golden: Golden, tokenizer: Tokenizer, network: NextScaleNetwork, settings: NextScaleSampling
) -> Iterator[Check]:
    """Codes, and where the file has them guided logits, mixtures and sums, scale by scale; and the image.

    Then the conditional logits once more, all scales at once: what caches and memories hold is what a full pass sees.
    """
    grids = grids_of(schedule(golden))
    edit = _edit(golden)
    label = golden["in.label"].long()
    with torch.no_grad():
        steps = list(generate(network, tokenizer, label, grids, settings, _recorded(golden), edit))
        for k, step in enumerate(steps):
            yield from _scale(golden, k, step, _codes(golden, k, step, settings), settings)
        yield Check("mid.logits_cfg", torch.cat([step.logits for step in steps], dim=1), LOGITS, absolute=True)
        tokens = torch.cat([step.tokens for step in steps], dim=1)
        image = tokenizer.reconstruct(steps[-1].state)
        yield Check("out.image", _as_stored(golden, image), LOGITS, absolute=True)
        if not settings.more_smooth and golden.config["cfg"] and "mid.logits_cond" in golden.tensors:
            again = network(tokenizer.inputs(tokens, grids), label, grids)
            if settings.forbidden:
                again[..., list(settings.forbidden)] = golden["mid.logits_cond"][..., list(settings.forbidden)]
            yield Check("mid.logits_cond", again, LOGITS, absolute=True)


def dropped(golden: Golden, network: Network) -> Tensor:
    """The labels after the file's label dropout."""
    drop = golden["in.drop_u"] < golden.config["var"]["cond_drop_rate"]
    return torch.where(drop, network.null_label, golden["in.label"].long())


def _recorded(golden: Golden) -> Noise:
    """Noise from the file: that of mixtures, or else of draws; files of greedy samples have none."""

    def noise(k: int, length: int, vocab: int) -> Tensor:
        name = f"in.gumbel_exp.{k}" if f"in.gumbel_exp.{k}" in golden.tensors else f"in.exp_noise.{k}"
        return golden[name].view(-1, length, vocab)

    return noise


def _codes(golden: Golden, k: int, step: Drawn, settings: NextScaleSampling) -> Tensor:
    """The codes that the reference records; beside mixtures it draws codes as well."""
    if not step.sampled.is_floating_point():
        return step.sampled if "mid.sampled_before_replacement.0" not in golden.tensors else step.tokens
    if settings.top_k == 1:
        return greedy(step.logits)
    allowed = filtered(step.logits, settings.top_k, settings.top_p)
    return choose(allowed, golden[f"in.exp_noise.{k}"].view_as(allowed))


def _scale(golden: Golden, k: int, step: Drawn, codes: Tensor, settings: NextScaleSampling) -> Iterator[Check]:
    tolerance = _MIXTURE if settings.more_smooth else LOGITS
    yield Check(f"out.idx.{k}", codes, EXACT)
    if f"mid.sampled_before_replacement.{k}" in golden.tensors:
        yield Check(f"mid.sampled_before_replacement.{k}", step.sampled, EXACT)
    if f"mid.h.{k}" in golden.tensors:
        maps = step.tokens.mT.reshape(golden[f"mid.h.{k}"].shape)
        yield Check(f"mid.h.{k}", maps, tolerance, absolute=True)
    if f"mid.fhat.{k}" in golden.tensors:
        yield Check(f"mid.fhat.{k}", step.state, tolerance, absolute=True)
    if "mid.fhat_last" in golden.tensors and k == len(schedule(golden)) - 1:
        yield Check("mid.fhat_last", step.state, tolerance, absolute=True)


def _edit(golden: Golden) -> Edit | None:
    if not golden.config.get("edit"):
        return None
    parts = [golden[f"in.tokens.{k}"].long() for k in range(len(schedule(golden)))]
    return Edit(torch.cat(parts, dim=1), golden["in.edit_mask"])


def _as_stored(golden: Golden, image: Tensor) -> Tensor:
    """VAR and M-VAR clamp images and move them to [0, 1]; FlexVAR leaves them as they are."""
    return image if golden.system == "flexvar" else image.clamp(-1, 1).add(1).div(2)


def _after_first_block(golden: Golden, network: NextScaleNetwork, inputs: Tensor) -> Iterator[Check]:
    if "mid.block0_out" not in golden.tensors:
        return
    seen: list[Tensor] = []
    hook = network.blocks[0].register_forward_hook(lambda _module, _args, out: seen.append(out))
    network(inputs, dropped(golden, network), schedule(golden))
    hook.remove()
    yield Check("mid.block0_out", seen[0], LOGITS, absolute=True)


def _training_step(
    golden: Golden, network: NextScaleNetwork, loss: Tensor, logits: Tensor, codes: Tensor
) -> Iterator[Check]:
    """One step of the optimiser that a recipe makes; the file's list of what is not decayed must be ours."""
    config = golden.config["optimizer"]
    optimizer = AdamW(betas=tuple(config["betas"]), eps=config["eps"], weight_decay=config["wd"]).build(
        network, config["lr_used"]
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config["grad_clip"])
    optimizer.step()
    yield Check("out.step.loss", loss.view(1), LOSS)
    yield Check("out.step.grad_norm_before_clip", norm.view(1), LOGITS)
    if "out.step.stats_Lm_Lt_Accm_Acct" in golden.tensors:
        last = lengths_of(grids_of(schedule(golden)))[-1]
        errors = F.cross_entropy(logits.mT, codes, reduction="none")
        right = 100.0 * (logits.argmax(-1) == codes).float()
        figures = [errors.mean(), errors[:, -last:].mean(), right.mean(), right[:, -last:].mean()]
        yield Check("out.step.stats_Lm_Lt_Accm_Acct", torch.stack(figures), LOSS)
    after = network.state_dict()
    for name in golden.group("out.param_after"):
        yield Check(f"out.param_after.{name}", after[name], PARAMETER)


def _gradients(golden: Golden, network: NextScaleNetwork, loss: Tensor) -> Iterator[Check]:
    """Gradients of the smoothed loss; of the table of places, their norm and a corner."""
    loss.backward()
    gradients: dict[str, Any] = {name: p.grad for name, p in network.named_parameters()}
    for name in golden.group("out.grad"):
        value = gradients["pos_1LC"][..., :4, :4] if name == "pos_1LC_corner" else gradients[name]
        yield Check(f"out.grad.{name}", value, LOGITS)
    if "out.grad_norm_pos_1LC" in golden.tensors:
        yield Check("out.grad_norm_pos_1LC", gradients["pos_1LC"].norm().view(1), LOGITS)
