"""Recomputes the golden files of DMD2: losses, gradients, training steps and few-step samples.

All go through `genlab.distillation.dmd2.Dmd2`, as training does, with the files' noises and levels. The table of
parameterisations is in golden_dmd2_levels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.convert import edm, golden_dmd2_levels
from genlab.convert.golden_schedules import Betas
from genlab.convert.goldens import Case, Check, Golden
from genlab.core.contracts import Network
from genlab.core.errors import CheckpointError
from genlab.core.weights import fill_all
from genlab.distillation.discriminator import Critic, Head
from genlab.distillation.dmd2 import Dmd2, Dmd2Settings, Draw, Labelled
from genlab.distillation.losses import matching_gradient, pull
from genlab.processes.edm import Edm
from genlab.processes.few_step import FewStep
from genlab.processes.flow import Flow
from genlab.processes.levels import EdmLevels
from genlab.training.objective import Networks

TIGHT, GRADIENT = 1e-5, 1e-4
_Official = Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Setup:
    """A file's networks and losses.

    Args:
        process: the student's; it is trained at the first level.
        level: the file's numbers of levels -> levels.
        official: a network and named tensors -> the same by the file's names.
    """

    losses: Dmd2
    networks: Networks
    process: FewStep
    level: Callable[[Tensor], Tensor]
    official: _Official

    def draw(self, inputs: Mapping[str, Tensor], what: str) -> Draw:
        """The noise and levels that the file has for `what`."""
        number = inputs[f"{what}_timestep"] if f"{what}_timestep" in inputs else inputs[f"{what}_t"]
        return Draw(inputs[f"{what}_noise"], self.level(number))

    def generated(self, inputs: Mapping[str, Tensor]) -> Labelled:
        """The student's samples from the file's noise."""
        t, label = self.process.times[0], inputs["labels"]
        x = self.process.state(None, inputs["noise"], t)
        return Labelled(self.process.generate(self.networks["network"], x, t, label), label)

    def student_terms(self, inputs: Mapping[str, Tensor], samples: Labelled) -> dict[str, Tensor]:
        """The student's losses [B] under the file's draws."""
        return self.losses.student_terms(self.networks, samples, self.draw(inputs, "dm"), self.draw(inputs, "gen_cls"))

    def critic_terms(self, inputs: Mapping[str, Tensor], samples: Labelled) -> dict[str, Tensor]:
        """The critic's losses [B] under the file's draws."""
        fake = Labelled(samples.data.detach(), samples.label)
        real = Labelled(
            inputs["real_image"] if "real_image" in inputs else inputs["real_latents"],
            inputs["real_label"] if "real_label" in inputs else inputs["real_labels"],
        )
        judging = self.draw(inputs, "cls_fake"), real, self.draw(inputs, "cls_real")
        return self.losses.critic_terms(self.networks, fake, self.draw(inputs, "fake"), judging)


def losses(golden: Golden) -> Iterator[Check]:
    """All that one iteration computes: samples, estimates, losses, logits, gradients."""
    setup, inputs = _setup(golden), golden.group("in")
    samples = setup.generated(inputs)
    yield from _student(golden, setup, inputs, samples)
    yield from _critic(golden, setup, inputs, samples)
    if "out.multistep_sample" in golden.tensors:
        yield Check("out.multistep_sample", _few_steps(setup, golden), TIGHT)


def _student(golden: Golden, setup: Setup, inputs: Mapping[str, Tensor], samples: Labelled) -> Iterator[Check]:
    image = "generated_image" if "out.generated_image" in golden.tensors else "generated"
    yield Check(f"out.{image}", samples.data, TIGHT)
    still = Labelled(samples.data.detach().requires_grad_(), samples.label)
    matching, judging = setup.draw(inputs, "dm"), setup.draw(inputs, "gen_cls")
    real, fake = setup.losses.estimates(setup.networks, still, matching)
    found = {
        "mid.dm_noisy": setup.losses.teacher.noised(still.data, *matching),
        "mid.dm_sigma": matching.t,
        "mid.dm_weight_factor": (still.data - real).abs().flatten(1).mean(1),
        "out.dm_pred_real": real,
        "out.dm_pred_fake": fake,
        "out.dm_grad": matching_gradient(still.data, real, fake),
    }
    for name, value in found.items():
        if name in golden.tensors:
            yield Check(name, value.view_as(golden[name]), TIGHT)
    loss = pull(still.data, found["out.dm_grad"]).mean()
    yield Check("out.loss_dm", loss, TIGHT)
    yield from _where(golden, "out.dm_grad_wrt_", torch.autograd.grad(loss, still.data)[0])
    logits = setup.networks["critic"](None, setup.losses.judged(setup.networks, still, judging))[1]
    loss = F.softplus(-logits).mean()
    yield from _where(golden, "out.gen_cls_grad_wrt_", torch.autograd.grad(loss, still.data)[0])
    terms = setup.student_terms(inputs, samples)
    yield Check("out.gen_cls_loss", terms["adversarial"].mean(), TIGHT)
    student = _module(setup, "network")
    terms["loss"].mean().backward()
    grads = setup.official(student, _gradients(student))
    yield from _named(golden, "generator_grad.", grads)
    if "out.generator_loss" in golden.tensors:  # of the edm file, with its logits
        total = terms["matching"].mean() + setup.losses.settings.gan_weight * terms["adversarial"].mean()
        yield Check("out.generator_loss", total, TIGHT)
        yield Check("out.generator_grad_norm", _norm(grads.values()), GRADIENT)
        yield Check("out.gen_cls_logits", logits, TIGHT)
        silent = Draw(torch.zeros_like(still.data), setup.level(torch.zeros(len(still.data), dtype=torch.long)))
        plain = setup.losses.judged(setup.networks, still, silent)
        yield Check("out.cls_logits_without_diffusion", setup.networks["critic"](None, plain)[1], TIGHT)


def _critic(golden: Golden, setup: Setup, inputs: Mapping[str, Tensor], samples: Labelled) -> Iterator[Check]:
    critic = _module(setup, "critic")
    critic.zero_grad()
    terms = setup.critic_terms(inputs, samples)
    terms["loss"].mean().backward()
    yield Check("out.loss_fake", terms["denoising"].mean(), TIGHT)
    yield Check("out.guidance_cls_loss", terms["discriminator"].mean(), TIGHT)
    found = {"logits_fake": terms["logit_fake"][:, None], "logits_real": terms["logit_real"][:, None]}
    found |= {f"pred_realism_on_{side}": torch.sigmoid(terms[f"logit_{side}"]) for side in ("fake", "real")}
    found["guidance_loss"] = terms["loss"].mean()
    if "out.fake_x0_pred" in golden.tensors:
        draw, levels = setup.draw(inputs, "fake"), setup.losses.critic
        x = levels.noised(samples.data.detach(), *draw)
        with torch.no_grad():
            found["fake_x0_pred"] = levels.denoise(_module(setup, "critic").trained, x, draw.t, samples.label)
    grads = setup.official(critic.trained, _gradients(critic.trained))
    head = _gradients(critic.head)
    found["guidance_grad_norm"] = _norm([*grads.values(), *head.values()])
    for name, value in found.items():
        if f"out.{name}" in golden.tensors:
            yield Check(f"out.{name}", value, GRADIENT if "grad" in name else TIGHT)
    yield from _named(golden, "fake_grad.", grads)
    yield from _named(golden, "cls_grad.", head)


def train_steps(golden: Golden) -> Iterator[Check]:
    """Iterations one after another, with both optimizers."""
    config, setup = golden.config, _setup(golden)
    student, critic = _module(setup, "network"), _module(setup, "critic")
    students = torch.optim.AdamW(student.parameters(), config["generator_lr"], weight_decay=0.01)
    critics = torch.optim.AdamW(critic.parameters(), config["guidance_lr"], weight_decay=0.01)
    for step in range(config["steps"]):
        inputs = {name: value[step] for name, value in golden.group("in").items() if not name.startswith("probe")}
        samples = setup.generated(inputs)
        found = {"generated_image": samples.data}
        if step % config["dfake_gen_update_ratio"] == 0:
            terms = setup.student_terms(inputs, samples)
            found |= {"loss_dm": terms["matching"].mean(), "gen_cls_loss": terms["adversarial"].mean()}
            found["generator_grad_norm"] = _update(student, terms["loss"], students, config["max_grad_norm"])
            critic.zero_grad()
        terms = setup.critic_terms(inputs, samples)
        found |= {"loss_fake": terms["denoising"].mean(), "guidance_cls_loss": terms["discriminator"].mean()}
        found["guidance_grad_norm"] = _update(critic, terms["loss"], critics, config["max_grad_norm"])
        for name, value in found.items():
            yield Check(f"out.step{step}.{name}", value, GRADIENT if "grad" in name else TIGHT)
        yield from _probes(golden, setup, step)


@torch.no_grad()
def _probes(golden: Golden, setup: Setup, step: int) -> Iterator[Check]:
    x, label, levels = golden["in.probe_x"], golden["in.probe_labels"], setup.losses.critic
    t = setup.process.times[0]
    student = setup.process.generate(
        setup.networks["network"], setup.process.state(None, golden["in.probe_noise"], t), t, label
    )
    yield Check(f"out.step{step}.probe_generator", student, TIGHT)
    sigma = golden["in.probe_sigma"]
    critic = _module(setup, "critic")
    yield Check(f"out.step{step}.probe_fake", levels.denoise(critic.trained, x, sigma, label), TIGHT)
    silent = setup.losses.judged(setup.networks, Labelled(x, label), Draw(torch.zeros_like(x), sigma))
    yield Check(f"out.step{step}.probe_logit", critic(None, silent)[1], TIGHT)


@torch.no_grad()
def backward_simulation(golden: Golden) -> Iterator[Check]:
    """What a student of several steps is trained on, for each step and both ways; and its samples."""
    setup, label = _setup(golden), golden["in.labels"]
    process, student = setup.process, setup.networks["network"]
    times, start, noise = process.times, golden["in.start_noise"], golden["in.noise"]
    yield Check("out.denoising_step_list", torch.tensor(times).long(), 0)
    for index, t in enumerate(times):
        draws = iter([start, *golden["in.renoise"]])
        data = process.run(student, label, lambda: next(draws), times[:index])  # noqa: B023 (called at once)
        x = process.state(data, noise, t)
        if f"out.select{index}.student_input" in golden.tensors:
            yield Check(f"out.select{index}.student_input", x, TIGHT)
            yield Check(f"out.select{index}.student_x0", process.generate(student, x, t, label), TIGHT)
            yield Check(f"out.select{index}.timestep", torch.full((len(x),), int(t)), 0)
    real = golden["in.real_latents"]
    chosen = [(row, times[index]) for row, index in enumerate(golden["in.step_index"].tolist())]
    states = [
        process.state(real[row, None] if t != times[0] else None, noise[row, None], t)  # the first is pure noise
        for row, t in chosen
    ]
    yield Check("out.noised_real.student_input", torch.cat(states), TIGHT)
    yield Check("out.noised_real.timestep", torch.tensor([int(t) for _, t in chosen]), 0)
    yield Check("out.multistep_sample", _few_steps(setup, golden), TIGHT)


CASES: dict[str, Case] = {
    "edm_losses": losses,
    "edm_train_steps": train_steps,
    "latent_eps_cfg": losses,
    "latent_flow": losses,
    "latent_backward_simulation": backward_simulation,
    **golden_dmd2_levels.CASES,
}


class TinyLatentNet(Network):
    """The stand-in denoiser of the files: two convolutions down, two up, with the time's sines added between."""

    def __init__(self, channels: int, hidden: int, classes: int):
        super().__init__()
        self.num_classes = classes
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.time = nn.Linear(16, hidden)
        self.label = nn.Embedding(classes + 1, hidden)
        self.down = nn.Conv2d(hidden, hidden, 4, 2, 1)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(2 * hidden, channels, 3, padding=1)
        self.feature_layer = nn.SiLU()

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x [B,C,H,W], t [B], label [B] -> [B,C,H,W]."""
        angle = t.float()[:, None] * 10000 ** (-torch.arange(8) / 8)  # [B,8]
        e = self.time(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.label(label)  # [B,hidden]
        h = F.silu(self.conv_in(x) + e[:, :, None, None])
        m = self.feature_layer(self.mid(self.down(h)))  # [B,hidden,H/2,W/2]
        return self.conv_out(torch.cat([h, F.interpolate(m, scale_factor=2.0)], dim=1))


def _setup(golden: Golden) -> Setup:
    config, state = golden.config, _parameters(golden)
    settings = Dmd2Settings(
        teacher="",
        gan_weight=config["gen_cls_loss_weight"],
        critic_gan_weight=config.get("cls_loss_weight", config.get("guidance_cls_loss_weight")),
        teacher_guidance=config.get("real_guidance_scale", 1.0),
    )
    networks: dict[str, Any]
    kind = "unet" if "net" in config else "net"
    roles = {"teacher": f"real_{kind}.", "network": "generator.", "critic": f"fake_{kind}."}
    found = {role: _below(state, prefix) for role, prefix in roles.items()}
    if "net" in config:
        levels = EdmLevels(Edm(config["sigma_data"]), config["sigma_max"], config["sigma_min"], config["rho"])
        table = levels.table(config["num_train_timesteps"]).float()
        process = FewStep(levels.process, (config["conditioning_sigma"],))
        networks = {role: edm.put(edm.build(edm.from_constructor(config["net"])), own) for role, own in found.items()}
        networks["critic"] = Critic(networks["critic"], _head(golden, state))
        return Setup(Dmd2(settings, levels, levels), networks, process, lambda k: table[k], edm.official)
    process = _latent_process(config, golden.case)
    networks = {role: _stand_in(config, own) for role, own in found.items() if own}
    if "critic" in networks:
        networks["critic"] = Critic(networks["critic"], _head(golden, state))
    return Setup(Dmd2(settings, process.levels, process.levels), networks, process, lambda t: t, lambda _, own: own)


def _latent_process(config: Mapping[str, Any], case: str) -> FewStep:
    if "path" in config:
        return FewStep(Flow(golden_dmd2_levels.path_name(config["path"])), tuple(config["student_times"]))
    process = Betas(config["beta_schedule"], config["beta_start"], config["beta_end"]).diffusion()
    if case == "latent_backward_simulation":
        every = 1000 // config["num_denoising_step"]  # rounded down, so that the last of the list may be one more
        return FewStep(process, tuple(float(t) for t in range(999, 0, -every)))
    return FewStep(process, (float(config["conditioning_timestep"]),))


def _stand_in(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> TinyLatentNet:
    network = TinyLatentNet(config["channels"], config["hid"], config["num_classes"])
    fill_all(network.state_dict(), state, "the golden file")
    return network


def _head(golden: Golden, state: Mapping[str, Tensor]) -> nn.Module:
    """The file's head, of whose sizes its weights tell."""
    own = _below(state, "cls_pred_branch.")
    convolutions = [value.shape for name, value in sorted(own.items()) if value.dim() == 4]
    width, rows, columns = convolutions[-2][0], *convolutions[-2][2:]
    head = Head(width, len(convolutions) - 2, (rows, columns), golden.config["cls_groups"])
    fill_all(head.state_dict(), own, "the golden file")
    return head


def _parameters(golden: Golden) -> dict[str, Tensor]:
    """The file's own, or those of the file beside it that it names. Raises CheckpointError."""
    if state := golden.group("param"):
        return state
    if not (source := golden.config.get("params_from")):
        raise CheckpointError(f"{golden.path}: holds no parameters and names no file with any")
    return Golden.load(golden.path.with_name(f"{source}.safetensors")).group("param")


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _module(setup: Setup, role: str) -> Any:
    return setup.networks[role]


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    """Those of all parameters; zero where the loss does not reach."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([gradient.double().norm() for gradient in gradients]).norm()


def _update(network: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """One step of `optimizer`; the norm of the gradient before it was clipped."""
    optimizer.zero_grad()
    loss.mean().backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
    optimizer.step()
    return norm


def _few_steps(setup: Setup, golden: Golden) -> Tensor:
    """The student's samples from the file's noises, over all its levels."""
    first = "in.start_noise" if "in.start_noise" in golden.tensors else "in.noise"
    draws = iter([golden[first], *golden["in.renoise"]])
    with torch.no_grad():
        data = setup.process.run(
            setup.networks["network"], golden["in.labels"], lambda: next(draws), setup.process.times
        )
    assert data is not None, "there is at least one level"
    return data


def _where(golden: Golden, prefix: str, value: Tensor) -> Iterator[Check]:
    """A check of the output whose name begins so, if there is one."""
    for name in golden.tensors:
        if name.startswith(prefix):
            yield Check(name, value, GRADIENT)


def _named(golden: Golden, prefix: str, found: Mapping[str, Tensor]) -> Iterator[Check]:
    """A check of each output `out.PREFIX NAME`."""
    for name in golden.group("out"):
        if name.startswith(prefix):
            yield Check(f"out.{name}", found[name.removeprefix(prefix)], GRADIENT)
