"""Recomputes the golden files of ARFlow: attention, training forwards and losses, recurrent forwards, samples."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genlab.convert import arflow
from genlab.convert.golden_parts import sde_options, sde_steps
from genlab.convert.goldens import Case, Check, Golden
from genlab.networks.arflow import ARFlow
from genlab.nn.linear_attention import HybridAttention, attend, states_before, written
from genlab.processes.arflow import AutoregressiveFlow, AutoregressiveFlowSampling
from genlab.processes.flow_sampling import stochastic
from genlab.processes.paths import interpolate, linear

TOLERANCE, GRADIENT = 3e-5, 1e-4
_GUIDED_CHANNELS = 3


def attention_core(golden: Golden) -> Iterator[Check]:
    """Attention without projections: outputs, the state after, gradients, and one image after a given state."""
    images = golden.config["chunks"]
    leaves = {name: golden[f"in.{name}"].clone().requires_grad_() for name in ("q", "k", "v", "g")}  # [B,H,S*N,...]
    q, k, v, decay = (leaf.unflatten(2, (images, -1)).transpose(1, 2) for leaf in leaves.values())  # [B,S,H,N,...]
    before, after = states_before(written(k, v), decay.mean(-1))
    out = attend(q, k, v, decay, before).transpose(1, 2).flatten(2, 3)  # [B,H,S*N,d]
    yield Check("out.o", out, TOLERANCE)
    yield Check("out.final_state", after, TOLERANCE)
    found = torch.autograd.grad(out, list(leaves.values()), golden["in.grad_out"])
    for name, gradient in zip(leaves, found):
        yield Check(f"out.grad_{name}", gradient, GRADIENT)
    q, k, v, decay = (part[:, :1] for part in (q, k, v, decay))
    before, after = states_before(written(k, v), decay.mean(-1), golden["in.state0"])
    yield Check("out.o_first_chunk_with_state0", attend(q, k, v, decay, before)[:, 0], TOLERANCE)
    yield Check("out.state_after_first_chunk", after, TOLERANCE)


@torch.no_grad()
def attention_module(golden: Golden) -> Iterator[Check]:
    """Attention with projections, under a condition for each token."""
    config = golden.config
    options = config.get("norm_eps", 1e-6), config.get("gate_logit_normalizer", 16)
    module = HybridAttention(config["dim"], config["heads"], *options)
    names = ("q_proj", "k_proj", "v_proj", "g_proj", "gt_proj")
    fused = torch.cat([golden[f"param.{name}.weight"] for name in names])
    module.load_state_dict({"in_proj.weight": fused, "out_proj.weight": golden["param.out_proj.weight"]})
    x, c = (golden[f"in.{name}"].unflatten(1, (config["chunks"], -1)) for name in ("x", "c"))  # 2 x [B,S,N,D]
    yield Check("out.o", module(x, c)[0].flatten(1, 2), TOLERANCE)


def train_forward_loss(golden: Golden) -> Iterator[Check]:
    """The training forward, its intermediates, the loss and its gradients."""
    network = _network(golden)
    x1, x0, u = golden["in.x1"], golden["in.x0"], golden["in.u"]  # 2 x [B,S,C,h,w], [B,S]
    label = torch.where(golden["in.label_drop"], network.num_classes, golden["in.labels"])  # [B]
    t = u.sort(1).values
    xt = interpolate(linear(t[..., None, None, None]), x1, x0)
    yield Check("mid.t", t, TOLERANCE)
    yield Check("mid.xt", xt, TOLERANCE)
    yield Check("mid.patch_embed", network.x_embedder(xt.flatten(0, 1)).unflatten(0, t.shape), TOLERANCE)
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, out, name=name: seen.append((name, out)))
        for name, module in _recorded(network).items()
    ]
    yield Check("out.velocity", network(xt, t, label)[:, :, : x1.shape[2]], TOLERANCE)
    for hook in hooks:
        hook.remove()
    for name, value in seen:
        tokens = value[0] if isinstance(value, tuple) else value  # [B,S,N,...]
        stored = golden.tensors.get(f"mid.{name}", tokens)
        yield Check(f"mid.{name}", tokens.reshape(stored.shape), TOLERANCE)
    flow = AutoregressiveFlow(sequence=u.shape[1])
    images = label.repeat_interleave(flow.sequence)  # [B*S]
    loss = flow.loss_at(network, x1.flatten(0, 1), x0.flatten(0, 1), u.flatten(), images).view(u.shape)
    yield Check("out.loss_per_sample", loss.mean(1), TOLERANCE)
    yield Check("out.loss", loss.mean(), TOLERANCE)
    yield from _gradients(golden, network, loss.mean())


@torch.no_grad()
def recurrent_vs_parallel(golden: Golden) -> Iterator[Check]:
    """A sequence at once, and image by image with the state in hand."""
    network = _network(golden)
    x, t, label = golden["in.x"], golden["in.t"], golden["in.labels"]
    channels = x.shape[2]
    yield Check("out.parallel", network(x, t, label)[:, :, :channels], TOLERANCE)
    states: list[Tensor] | None = None
    outputs = []
    for image in range(x.shape[1]):
        out, states = network.step(x[:, image], t[:, image], label, states)
        outputs.append(out[:, :channels])
    yield Check("out.recurrent", torch.stack(outputs, dim=1), TOLERANCE)
    for number, state in enumerate(states or []):
        yield Check(f"out.state.block{number}", state, TOLERANCE)


@torch.no_grad()
def sample(golden: Golden) -> Iterator[Check]:
    """SDE samples under given noise; the reference evolves both halves of a guided batch, and here is the first."""
    options = sde_options(golden.config)
    steps, begin = sde_steps(golden.config, options)
    settings = AutoregressiveFlowSampling(steps=steps, guidance_channels=_GUIDED_CHANNELS, **options)
    velocity = AutoregressiveFlow().denoiser(_network(golden), golden["in.labels"], settings)
    states: list[Tensor] = []

    def recorded(x: Tensor, t: float) -> Tensor:
        states.append(x)
        return velocity(x, t)

    draws = iter(golden["in.noise"])
    stream: Any = SimpleNamespace(normal=lambda *shape: next(draws))  # in place of a SampleRng
    latent = stochastic("linear", recorded, golden["in.z"], (0.0, 1.0), settings, stream, None, begin)
    after = [*states[1:], latent] + [latent] * (settings.last_step == "none")  # the reference repeats the state then
    found = torch.stack(after)
    yield Check("mid.steps", found[: len(golden.tensors.get("mid.steps", found))], TOLERANCE)
    yield Check("out.latent", latent, TOLERANCE)


CASES: dict[str, Case] = {
    "attention_core": attention_core,
    "attention_module": attention_module,
    "train_forward_loss": train_forward_loss,
    "recurrent_vs_parallel": recurrent_vs_parallel,
    "sample": sample,
}


def _network(golden: Golden) -> ARFlow:
    return arflow.load(ARFlow(**arflow.from_constructor(golden.config)), golden.group("param"))


def _recorded(network: ARFlow) -> dict[str, nn.Module]:
    """The modules whose outputs the file has, by the file's names."""
    modules: dict[str, Any] = {f"block{number}": block for number, block in enumerate(network.blocks)}
    return {**modules, "block0_attn": network.blocks[0].attn, "final_tokens": network.final_layer}


def _gradients(golden: Golden, network: ARFlow, loss: Tensor) -> Iterator[Check]:
    """The gradients in the file, of official parameters."""
    names = [name for name, _ in network.named_parameters()]
    found = torch.autograd.grad(loss, list(network.parameters()))
    official = arflow.unfused(dict(zip(names, found)), len(network.blocks))
    for name in golden.group("out"):
        if name.startswith("grad."):
            yield Check(f"out.{name}", official[name.removeprefix("grad.")], GRADIENT)
