"""DMD2 as roles and turns on the loop: what is updated by what, from any teacher, and over again after a stop."""

import copy
import itertools

import pytest
import torch
from accelerate import Accelerator

from genlab.core.contracts import Batch
from genlab.core.errors import ConfigError, GenlabError
from genlab.core.generator import Generator
from genlab.core.weights import fill_all
from genlab.distillation.discriminator import Discriminator, Noised
from genlab.distillation.dmd2 import Dmd2Settings, Draw, Labelled
from genlab.distillation.losses import convince, matching_gradient, pull, tell_apart
from genlab.distillation.settings import Parts
from genlab.networks.dimr import DiMRConfig
from genlab.networks.dit import DiTConfig
from genlab.networks.edm_unet import EdmUNetConfig
from genlab.processes.diffusion import DiffusionConfig
from genlab.processes.edm import EdmConfig
from genlab.processes.few_step import FewStepConfig
from genlab.processes.flow import FlowConfig
from genlab.processes.next_x import NextXConfig
from genlab.processes.vp import VpDiffusionConfig
from genlab.tokenization.pixels import Pixels
from genlab.training.loop import Hooks, Loop
from genlab.training.settings import TrainingSettings
from samplers.noise import SampleRng

DIT = DiTConfig(depth=2, width=32, heads=2, patch=2)
UNET = EdmUNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(), channels_per_head=8)
STAGE = {"depth": 1, "width": 16, "heads": 2}
DIMR = DiMRConfig(stages=({"block": "transformer", "patch": 2, **STAGE}, {"block": "convnext", **STAGE}))
PROCESSES = {"flow": FlowConfig(), "diffusion": DiffusionConfig(), "vp": VpDiffusionConfig(), "edm": EdmConfig()}


def generator(network, process, seed=0, classes=3, channels=1):
    tokenizer = Pixels(channels=channels).build(8)
    torch.manual_seed(seed)
    built = network.build(tokenizer.spec, classes)
    for parameter in built.parameters():  # fresh ones are silent
        torch.nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    return Generator(tokenizer, built, process.build(), process.Sampling())


def training(**changes):
    return TrainingSettings(images=48, batch=4, ema=(0.5,), trackers=(), preview_count=4, clip_norm=10.0, **changes)


def objective(network=DIT, process=FlowConfig(), levels=1, student=None, how=training(), **settings):  # noqa: B008
    few = FewStepConfig(base=process, levels=levels)
    teacher = generator(network, process)
    pupil = generator(student or network, few, seed=1)
    if student is None:
        fill_all(pupil.network.state_dict(), teacher.network.state_dict(), "the teacher")
    settings = Dmd2Settings(teacher="there", **{"critic_updates": 3, "init": "fresh", **settings})
    return settings.objective(pupil, teacher, how.role(pupil.network), how, 0)


def feed(start, micro):
    for first in itertools.count(start, micro):
        position = torch.arange(first, first + micro)
        images = (position * 37 % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        yield Batch(label=position % 3, position=position, images=images)


def loop(folder, trained, how=training()):  # noqa: B008
    return Loop(trained, feed, how, 0, folder, Accelerator(cpu=True), {"a": 1}, Hooks())


def state(running):
    tensors = {stem: group for member in running.members.values() for stem, group in member.tensors()}
    return {f"{stem}/{name}": value.clone() for stem, group in tensors.items() for name, value in group.items()}


def test_the_critic_learns_each_step_and_the_student_every_third(tmp_path):
    running, changed = loop(tmp_path, objective()), []
    teacher = copy.deepcopy(running.frozen["teacher"].state_dict())
    for step in range(4):
        before = state(running)
        values, _ = running.step(feed(4 * step, 4))
        after = state(running)
        changed.append(
            {name.split("/")[0] for name in after if not torch.equal(before.get(name, after[name]), after[name])}
        )
        assert ("network/loss" in values) == (step % 3 == 0)
        assert {"critic/denoising", "critic/discriminator", "critic/logit_real", "critic/logit_fake"} <= set(values)
    assert [("network" in names, "critic" in names) for names in changed] == [
        (True, True),
        *[(False, True)] * 2,
        (True, True),
    ]
    assert all(torch.equal(value, teacher[name]) for name, value in running.frozen["teacher"].state_dict().items())
    assert not any(name.startswith("teacher") for name in state(running))
    assert "network.ema-0.5/final_layer.linear.weight" in state(running)


@pytest.mark.parametrize("levels", [1, 2])
def test_stopped_in_the_middle_of_a_cycle_it_goes_on_bit_for_bit(tmp_path, levels):
    how = training(checkpoint_every=16, micro_batch=2)
    whole = loop(tmp_path / "whole", objective(levels=levels, how=how), how)
    whole.run()
    halved = loop(tmp_path / "halved", objective(levels=levels, how=how), how)
    halved.restore(tmp_path / "whole/checkpoints/000000032")  # after step 8; cycles begin at 6 and 9
    halved.run()
    expected, got = state(whole), state(halved)
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_micro_batches_change_nothing(tmp_path):
    states = []
    for micro in (4, 1):
        how = training(micro_batch=micro)
        running = loop(tmp_path, objective(how=how), how)
        batches = feed(0, micro)
        for _ in range(2):
            running.step(batches)
        states.append(state(running))
    assert all(torch.allclose(value, states[1][name], atol=2e-5) for name, value in states[0].items() if "/" in name)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("features", ["critic", "teacher", "own"])
def test_any_process_teaches(tmp_path, kind, features):
    options = {"gan_features": features, "gan_balance": True, "teacher_guidance": 3.0}  # 1: no force at first
    trained = objective(UNET if kind == "edm" else DIT, PROCESSES[kind], **options)
    values, _ = loop(tmp_path, trained).step(feed(0, 4))
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert values["network/grad_norm"] > 0 and values["network/gradient"] > 0
    assert trained.preview((0, 1)).shape == (4, 3, 8, 8)


def test_student_and_critic_of_another_kind_than_the_teacher(tmp_path):
    """A small U-Net in EDM's terms learns from a DiT flow by a critic that predicts noise."""
    teacher, critic = generator(DIT, FlowConfig()), generator(DIT, DiffusionConfig(), seed=2)
    student = generator(UNET, FewStepConfig(base=EdmConfig(), levels=2), seed=3)
    settings = Dmd2Settings(teacher="there", init="fresh", teacher_guidance=2.0, teacher_precision="bf16")
    how = training()
    trained = settings.objective(student, teacher, how.role(student.network), how, 0, critic=critic)
    values, _ = loop(tmp_path, trained).step(feed(0, 4))
    assert all(torch.tensor(value).isfinite() for value in values.values())


@pytest.mark.parametrize("network", [DIT, UNET, DIMR], ids=["dit", "unet", "dimr"])
@pytest.mark.parametrize("recompute", [False, True])
def test_one_pass_of_the_critic_is_two_of_its_parts(network, recompute):
    """And the gradients of everything it has arrive, also where activations are computed again."""
    made = objective(network, VpDiffusionConfig() if network is DIMR else FlowConfig()).critic
    made.trained.activation_checkpointing = recompute
    rng = torch.Generator().manual_seed(0)
    noised = Noised(torch.randn(2, 1, 8, 8, generator=rng), torch.rand(2, generator=rng), torch.tensor([0, 1]))
    judged = Noised(torch.randn(4, 1, 8, 8, generator=rng), torch.rand(4, generator=rng), torch.tensor([0, 1, 2, 3]))
    out, logits = made(noised, judged)
    assert torch.equal(out, made.trained(*noised)) and logits.shape == (4, 1)
    assert torch.allclose(logits[:1], made(None, Noised(*(part[:1] for part in judged)))[1], atol=1e-5)
    (out.sum() + logits.sum()).backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None]
    assert all("stages.0.head" in name for name in silent)  # DiMR's coarse prediction was not asked for


def test_the_critic_has_no_dropout_whatever_its_teacher_had(tmp_path):
    """Its gradient is the same in two passes of one step."""
    trained = objective(UNET.model_copy(update={"dropout": 0.5}), EdmConfig())
    loop(tmp_path, trained).step(feed(0, 4))
    noised = Noised(torch.ones(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1]))
    assert trained.critic.training
    assert torch.equal(trained.critic(noised)[0], trained.critic(noised)[0])


@pytest.mark.parametrize("side", [(8, 8), (4, 16), (1, 3)])
def test_a_discriminator_of_its_own_learns_what_a_class_looks_like(side):
    """Levels and classes count, whatever the shape: class 0 is bright, class 1 dark."""
    torch.manual_seed(0)
    judge = Discriminator(3, side, 2, width=8, hidden=16)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-2)
    label, t = torch.arange(32) % 2, torch.rand(32)
    bright = (1.0 - 2 * label).view(-1, 1, 1, 1) + 0.1 * torch.randn(32, 3, *side)
    for step in range(40):
        loss = tell_apart(judge(Noised(bright, t, label)), judge(Noised(-bright, t, label))).mean()
        optimizer.zero_grad()
        loss.backward()
        assert step > 0 or all(parameter.grad.any() for parameter in judge.parameters())
        optimizer.step()
    assert loss < 0.2


def test_the_students_gradient_is_that_of_both_losses_written_out():
    trained = objective(gan_weight=0.5, teacher_guidance=1.5)
    networks = {"teacher": trained.teacher.requires_grad_(False), "critic": trained.critic.requires_grad_(False)}
    rng = torch.Generator().manual_seed(0)

    def draw():
        return Draw(torch.randn(3, 1, 8, 8, generator=rng), torch.rand(3, generator=rng))

    data, label, matching, judging = torch.randn(3, 1, 8, 8, generator=rng), torch.tensor([0, 1, 2]), draw(), draw()
    data.requires_grad_()
    terms = trained.losses.student_terms(networks, Labelled(data, label), matching, judging)
    (got,) = torch.autograd.grad(terms["loss"].mean(), data)
    samples = Labelled(data, label)
    gradient = matching_gradient(data, *trained.losses.estimates(networks, samples, matching))
    _, logits = networks["critic"](None, trained.losses.judged(networks, samples, judging))
    (expected,) = torch.autograd.grad((pull(data, gradient) + 0.5 * convince(logits)).mean(), data)
    assert torch.allclose(got, expected, atol=1e-7)


def test_only_the_asked_for_classes_are_generated():
    settings, how = Dmd2Settings(teacher="there"), training()
    teacher, student = generator(DIT, FlowConfig()), generator(DIT, FewStepConfig(base=FlowConfig()))
    trained = settings.objective(student, teacher, how.role(student.network), how, 0, classes=(2,))
    batch = next(feed(0, 4))
    rng = SampleRng(0, batch.position)
    assert trained._generate({"network": student.network}, batch, rng).label.tolist() == [2] * 4


def test_a_collapsed_run_stops_with_advice(tmp_path):
    trained = objective(stop_below=0.9)
    spread = trained.spread
    data, label = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    spread.count(0.5 * data, label, data, label)
    figures = spread.read()
    assert figures["spread"] == pytest.approx(0.25) and {"spread 0", "spread 1", "spread 2"} < set(figures)
    assert spread.read() == {}
    spread.count(0.5 * data, label, data, label)
    trained.step = 10
    with pytest.raises(GenlabError, match=r"spread 0\.250 .* Raise critic_updates"):
        trained.figures()


@pytest.mark.parametrize(
    ("student", "settings", "complaint"),
    [
        (generator(DIT, FewStepConfig(base=FlowConfig()), channels=3), {}, "same data and tokenizer"),
        (generator(DIT, FewStepConfig(base=FlowConfig()), classes=5), {}, "knows 3 classes, the data has 5"),
        (generator(UNET, FewStepConfig(base=FlowConfig())), {}, "another architecture"),
        (generator(DIT, FewStepConfig(base=DiffusionConfig())), {}, "is not the teacher's"),
        (generator(DIT, FlowConfig()), {}, "process few_step"),
        (generator(DIT, FewStepConfig(base=FlowConfig())), {"matching_range": (0.9, 0.1)}, "low first"),
    ],
)
def test_what_does_not_fit_is_told_before_training(student, settings, complaint):
    teacher = Parts.of(generator(DIT, FlowConfig()))
    with pytest.raises(ConfigError, match=complaint):
        Dmd2Settings(teacher="there", **settings).check(Parts.of(student), teacher)


def test_a_teacher_without_noise_levels_is_refused():
    student, teacher = (Parts.of(generator(DIT, kind)) for kind in (FewStepConfig(base=FlowConfig()), FlowConfig()))
    with pytest.raises(ConfigError, match=r"teacher: NextX has no noise levels"):
        Dmd2Settings(teacher="there").check(student, teacher._replace(process=NextXConfig().build()))
