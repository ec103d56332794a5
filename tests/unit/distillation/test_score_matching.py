from functools import partial

import pytest
import torch

from genlab.core.contracts import Batch
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.score_matching import ScoreMatchingObjective, ScoreMatchingSettings, matching, warm_start
from genlab.distillation.settings import Parts
from genlab.networks.dimr import DiMRConfig
from genlab.networks.dit import DiT
from genlab.networks.edm_unet import EdmUNet
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.few_step import FewStep
from genlab.processes.flow import Flow, FlowConfig
from genlab.processes.vp import VpDiffusion
from genlab.tokenization.pixels import Pixels
from genlab.training.objective import Role
from genlab.training.optimizers import AdamW
from samplers.noise import spawn


def dit(width=16, depth=1, num_classes=3, **options):
    torch.manual_seed(width + depth)
    network = DiT((8, 8), 1, width=width, depth=depth, heads=2, num_classes=num_classes, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def loss(process, student, teacher, channels=1):
    data = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    label, rng = torch.tensor([0, 1, 2, 3]), spawn(0, range(4))
    return matching(student, teacher, partial(process.loss, tokens=data, label=label, rng=rng))


@pytest.mark.parametrize("process", [Flow(), Flow("vp", "noise"), Diffusion(), VpDiffusion()], ids=str)
def test_the_teacher_matches_itself_and_another_learns_from_it_alone(process):
    teacher, student = dit(), dit(depth=2)
    assert loss(process, teacher, teacher)["loss"].abs().max() == 0
    found = loss(process, student, teacher)
    assert found["loss"].shape == (4,) and (found["loss"] > 0).all()
    assert not found["data"].requires_grad
    found["loss"].mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.x_embedder.proj.weight.grad.abs().max() > 0


def test_for_edm_it_is_the_weighted_error_of_the_expected_data():
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "multipliers": (1,), "blocks": 1, "attention": ()}
    teacher, student = (EdmUNet((8, 8), 3, width=width, **sizes) for width in (16, 8))
    for parameter in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    process, data = Edm(), torch.randn(4, 3, 8, 8)
    sigma, noise, label = torch.tensor([0.01, 0.3, 2.0, 40.0]), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    found = matching(student, teacher, lambda net: process.losses_at(net, data, noise, sigma, label))["loss"]
    x = data + sigma.view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        gap = process.denoise(student, x, sigma, label)[0] - process.denoise(teacher, x, sigma, label)[0]
    expected = process.weight(sigma) * gap.square().flatten(1).mean(1)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-6)


def test_prediction_and_learned_variance_weigh_the_same():
    process = Diffusion(variance="learned_range")
    teacher, student = dit(learn_sigma=True), dit(depth=2, learn_sigma=True)
    seen = []
    for network in (teacher, student):
        network.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))
    found = loss(process, student, teacher)["loss"]
    errors = (seen[0] - seen[1]).square().flatten(2).mean(2)  # [B,2]
    torch.testing.assert_close(found.detach(), errors.sum(1))


def test_all_resolutions_are_matched():
    spec = Pixels(channels=1).build(8).spec
    coarse = {"block": "transformer", "width": 16, "depth": 1, "patch": 2, "heads": 2}
    config = DiMRConfig(stages=(coarse, {"block": "convnext", "width": 16, "depth": 1, "kernel": 3}))
    teacher, student = config.build(spec, 3), config.build(spec, 3)
    first, last = student.stages[0], student.stages[-1]
    loss(VpDiffusion(resolutions=2), student, teacher)["loss"].mean().backward()
    assert all(any(p.grad is not None for p in stage.parameters()) for stage in (first, last))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": Flow(time="logit_normal")}, "differs in time"),
        ({"process": VpDiffusion()}, "differs in name"),
        ({"process": FewStep(Flow(), (0.0,))}, "noise levels"),
        ({"network": dit(num_classes=4)}, "knows 3 classes, the data has 4"),
    ],
)
def test_a_student_that_does_not_suit_its_teacher_is_refused(change, message):
    teacher = Parts(Pixels(channels=1).build(8).spec, dit(), Flow())
    settings = ScoreMatchingSettings(teacher="somewhere")
    settings.check(teacher._replace(network=dit(depth=2)), teacher)
    with pytest.raises(ConfigError, match=message):
        settings.check(teacher._replace(**change), teacher)


def test_labels_are_dropped_and_the_teacher_is_frozen():
    tokenizer = Pixels(channels=1).build(8)
    student = dit()
    generator = Generator(tokenizer, student, Flow(), FlowConfig.Sampling())
    teacher = dit(depth=2)
    objective = ScoreMatchingObjective(generator, teacher, Role(student, AdamW()), 1.0)
    assert objective.roles()["teacher"].optimizer is None
    seen = []
    teacher.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[2]))
    (turn,) = objective.turns(0)
    batch = Batch(
        label=torch.tensor([0, 1]), position=torch.arange(2), images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    )
    networks = {"network": student, "teacher": teacher, "tokenizer": tokenizer}
    assert turn.loss(networks, batch, spawn(0, range(2)))["loss"].shape == (2,)
    assert seen[0].tolist() == [3, 3]


def test_a_warm_start_copies_everything_between_equals_and_slices_between_others():
    teacher, twin, small = dit(32, 2), dit(32, 2), dit(16, 1)
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    warm_start(twin, teacher)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), teacher.parameters()))
    warm_start(small, teacher)
    queries, keys, _ = small.blocks[0].attn.qkv.bias.chunk(3)
    wanted = teacher.blocks[0].attn.qkv.bias.chunk(3)
    assert torch.equal(queries, wanted[0][::2]) and torch.equal(keys, wanted[1][::2])
    assert torch.equal(small.final_layer.linear.bias, teacher.final_layer.linear.bias)
