from itertools import pairwise

import pytest
import torch
from torch import nn

from genlab.core.contracts import Batch, Network
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.distillation.consistency import ConsistencyDistillation, agreement
from genlab.distillation.continuous_consistency import ContinuousConsistencyDistillation
from genlab.distillation.progressive import ProgressiveDistillation, halved, steps_of_stage
from genlab.distillation.settings import Parts
from genlab.distillation.teacher_steps import denoiser, grid, implied_data, step
from genlab.networks.dit import DiT
from genlab.processes.continuous_consistency import ContinuousConsistency
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.few_step import FewStep, FewStepSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.levels import levels_of
from genlab.processes.vp import VpDiffusion
from genlab.tokenization.pixels import Pixels
from genlab.training.objective import Role
from genlab.training.settings import TrainingSettings
from samplers.noise import spawn

SCALE = 0.6  # standard deviation of the data, for which all is known
LEVELS = {
    "linear": levels_of(Flow()),
    "gvp": levels_of(Flow(path="gvp")),
    "diffusion": levels_of(Diffusion()),
    "vp": levels_of(VpDiffusion()),
    "edm": levels_of(Edm()),
}


def expected_data(levels):
    """What a perfect teacher of data N(0, SCALE^2) predicts."""

    def predict(x, t):
        c = levels.coefficients(t, x)
        return c.alpha * SCALE**2 / (c.alpha**2 * SCALE**2 + c.sigma**2) * x

    return predict


def spread(levels, t, x):
    """Standard deviation of states at t."""
    c = levels.coefficients(t, x)
    return (c.alpha**2 * SCALE**2 + c.sigma**2).sqrt()


def consistency_function(levels):
    return lambda x, t: SCALE / spread(levels, t, x) * x


def ends(levels, x):
    points = grid(levels, 64)
    return points[30].repeat(len(x)), points[31].repeat(len(x))


@pytest.mark.parametrize("name", LEVELS)
def test_heun_follows_the_flow_better_than_euler_and_implied_data_undoes_euler(name):
    levels, x = LEVELS[name], spawn(0, range(8)).normal(1, 4, 4)
    here, there = ends(levels, x)
    exact = spread(levels, there, x) / spread(levels, here, x) * x
    predict = expected_data(levels)
    errors = [(step(solver, levels, predict, x, here, there) - exact).abs().max() for solver in ("euler", "heun")]
    assert errors[1] < 0.5 * errors[0]
    z = step("euler", levels, predict, x, here, there)
    torch.testing.assert_close(implied_data(levels, x, z, here, there), predict(x, here), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "gvp", "edm"])
def test_heun_is_of_second_order(name):
    levels, x = LEVELS[name], spawn(0, range(4)).normal(1, 4, 4).double()
    start, end = (t.double() for t in ends(levels, x))
    exact = spread(levels, end, x) / spread(levels, start, x) * x
    errors = []
    for count in (8, 16):
        times = [start + (end - start) * k / count for k in range(count + 1)]
        state = x
        for here, there in pairwise(times):
            state = step("heun", levels, expected_data(levels), state, here, there)
        errors.append((state - exact).abs().max().item())
    assert 3 < errors[0] / errors[1] < 5.5


@pytest.mark.parametrize("name", LEVELS)
def test_the_grid_goes_from_noise_to_data(name):
    points = grid(LEVELS[name], 8)
    assert len(points) == 9
    noisiness = [LEVELS[name].noisiness(float(t)) for t in points]
    assert noisiness == sorted(noisiness, reverse=True)
    assert noisiness[0] > 5
    assert noisiness[-1] < 0.03


def test_no_state_is_noisier_than_its_teacher_knows():
    points = grid(LEVELS["linear"], 8, LEVELS["edm"])
    assert LEVELS["linear"].noisiness(float(points[0])) == pytest.approx(80, rel=1e-4)
    assert torch.equal(points[1:], grid(LEVELS["linear"], 8)[1:])


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_the_exact_consistency_function_agrees_with_itself(name):
    levels, x = LEVELS[name], spawn(0, range(8)).normal(1, 4, 4)
    points = grid(levels, 64)
    here, there = points[20].repeat(8).float(), points[21].repeat(8).float()
    f = consistency_function(levels)
    x = x * spread(levels, here, x)
    gap = agreement(levels, f, f, expected_data(levels), x, here, there, "heun", "l2")
    wrong = agreement(levels, expected_data(levels), f, expected_data(levels), x, here, there, "heun", "l2")
    assert gap.max() < 1e-6
    assert wrong.min() > 100 * gap.max()


def test_a_step_of_the_halved_student_is_two_of_its_teacher():
    levels, x = LEVELS["linear"], spawn(0, range(3)).normal(1, 4, 4)
    teacher, points = expected_data(levels), grid(levels, 8)
    rows = [t.repeat(3) for t in points]

    def student(x, t):
        index = int((points - t[0]).abs().argmin())
        return halved(levels, teacher, x, *rows[index : index + 3]).data

    ours, theirs = x, x
    for index in range(8):
        theirs = step("euler", levels, teacher, theirs, rows[index], rows[index + 1])
    for index in range(0, 8, 2):
        ours = step("euler", levels, student, ours, rows[index], rows[index + 2])
    torch.testing.assert_close(ours, theirs)


def test_stages_halve_the_steps_and_the_last_two_take_twice_as_long():
    stages = [steps_of_stage(update, 16, 10) for update in range(0, 80, 10)]
    assert stages == [16, 8, 4, 2, 2, 1, 1, 1]
    assert steps_of_stage(0, 1, 10) == 1


def generator(process, sampling, seed=0):
    torch.manual_seed(seed)
    network = DiT((8, 8), 1, patch=2, width=16, depth=2, heads=2, num_classes=10)
    nn.init.normal_(network.final_layer.linear.weight, std=0.1)
    return Generator(Pixels(channels=1).build(8), network, process, sampling)


def batch(positions):
    images = (255 * spawn(5, positions).uniform(1, 8, 8)).to(torch.uint8)
    return Batch(torch.tensor(positions) % 10, torch.tensor(positions), images.expand(-1, 3, -1, -1))


TRAINING = TrainingSettings(images=64, batch=8)
CASES = {
    "consistency": (ConsistencyDistillation(teacher="t", intervals=8, teacher_guidance=1.5), Flow(), None),
    "of another process": (ConsistencyDistillation(teacher="t", intervals=8, init="fresh"), Edm(), None),
    "progressive": (ProgressiveDistillation(teacher="t", steps=4), Flow(), Flow()),
    "continuous": (
        ContinuousConsistencyDistillation(teacher="t", teacher_guidance=2.0),
        Edm(),
        ContinuousConsistency(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lessons_teach_the_student_alone_and_each_sample_for_itself(name):
    settings, teacher_process, process = CASES[name]
    process = process or FewStep(Flow(), levels_of(Flow()).spread(2))
    student, teacher = generator(process, FewStepSampling()), generator(teacher_process, FlowSampling(), seed=1)
    settings.check(Parts.of(student), Parts.of(teacher))
    objective = settings.objective(student, teacher, Role(student.network), TRAINING, 0)
    roles = objective.roles()
    assert set(roles) == {"network", "teacher", "tokenizer"}
    assert roles["network"].average == isinstance(settings, ConsistencyDistillation)
    networks = {"network": student.network, "network.average": generator(process, None, seed=2).network}
    (turn,) = objective.turns(100)
    rows = list(range(6))
    losses = turn.loss(networks, batch(rows), spawn(0, rows))
    losses["loss"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.network.parameters())
    assert all(p.grad is None for n in (teacher.network, networks["network.average"]) for p in n.parameters())
    alone = turn.loss(networks, batch([4]), spawn(0, [4]))
    torch.testing.assert_close(alone["loss"][0], losses["loss"][4], rtol=1e-3, atol=1e-5)


def test_a_student_samples_by_its_own_process():
    settings = ConsistencyDistillation(teacher="t")
    student, teacher = generator(FewStep(Flow(), (0.0, 0.5)), FewStepSampling()), generator(Flow(), FlowSampling())
    objective = settings.objective(student, teacher, Role(student.network), TRAINING, 0)
    label, rng = torch.arange(4), spawn(0, range(4))
    assert torch.equal(objective.generator.sample(label, rng), student.sample(label, spawn(0, range(4))))


def test_continuous_consistency_is_for_edm_alone():
    settings = ContinuousConsistencyDistillation(teacher="t", init="fresh")
    student = Parts.of(generator(ContinuousConsistency(), None))
    with pytest.raises(ConfigError, match="needs an edm"):
        settings.check(student, Parts.of(generator(Flow(), None)))
    with pytest.raises(ConfigError, match="needs an edm"):
        settings.check(student, Parts.of(generator(Edm(sigma_data=1.0), None)))
    with pytest.raises(ConfigError, match="process continuous_consistency"):
        settings.check(student._replace(process=Flow()), None)


def test_a_teacher_must_have_levels_and_the_students_classes():
    settings = ConsistencyDistillation(teacher="t")
    student = Parts.of(generator(Flow(), None))
    with pytest.raises(ConfigError, match="no noise levels"):
        settings.check(student, student._replace(process=FewStep(Flow(), (0.0,))))
    objective = generator(Flow(), None)
    with pytest.raises(ConfigError, match="dmd2"):
        settings.objective(objective, objective, Role(objective.network), TRAINING, 0, classes=(1, 2))


class Silent(Network):
    num_classes = 10

    def forward(self, x, t, label):
        return torch.zeros_like(x)


def test_a_network_is_asked_in_the_words_of_its_process():
    levels, x = LEVELS["edm"], spawn(0, range(2)).normal(1, 4, 4)
    sigma = torch.tensor([0.5, 2.0])
    c = levels.process.scalings(sigma)
    found = denoiser(levels, Silent(), torch.zeros(2, dtype=torch.int64))(x, sigma)
    torch.testing.assert_close(found, c.skip[:, None, None, None] * x)
