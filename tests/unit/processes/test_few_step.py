"""Generation in one or a few steps."""

import pytest
import torch
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, NonFinite
from genlab.processes.diffusion import DiffusionConfig
from genlab.processes.edm import EdmConfig
from genlab.processes.few_step import FewStepConfig, FewStepSampling
from genlab.processes.flow import FlowConfig
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
BASES = {
    "flow": FlowConfig(),
    "noise": DiffusionConfig(),
    "velocity": DiffusionConfig(schedule="cosine", prediction="velocity"),
    "edm": EdmConfig(),
}


class Told(Network):
    """Returns a little of its input, and remembers what it was told."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, t, label):
        self.times.append(t[0].item())
        return 0.3 * x + label.view(-1, 1, 1, 1)


def sample(process, indices, steps=None, on_step=None):
    label = torch.tensor(indices) % 3
    settings = FewStepSampling(steps=steps)
    return process.sample(Told(), label, SPEC, spawn(7, indices), settings, on_step)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("levels", [1, 3])
def test_a_sample_is_its_own_whatever_the_batch(base, levels):
    process = FewStepConfig(base=base, levels=levels).build()
    whole = sample(process, [0, 1, 2, 3])
    assert torch.equal(whole[2:3], sample(process, [2]))
    assert whole.dtype == torch.float32 and whole.shape == (4, *SPEC.shape)


def test_fewer_steps_take_some_of_the_levels_and_more_are_refused():
    process = FewStepConfig(base=DiffusionConfig(), levels=4).build()
    assert process.chosen(None) == (999, 749, 499, 249)
    assert process.chosen(2) == (999, 499) and process.chosen(1) == (999,)
    events = []
    result = sample(process, [0, 1], steps=2, on_step=events.append)
    assert [(event.step, event.steps) for event in events] == [(1, 2), (2, 2)]
    assert torch.equal(events[-1].tokens, result)
    with pytest.raises(ConfigError, match="4 levels; take 4 or fewer"):
        sample(process, [0], steps=5)
    with pytest.raises(ConfigError, match=r"has learnt 1 level; take 1$"):
        sample(FewStepConfig(base=FlowConfig()).build(), [0], steps=2)


def test_a_lower_first_level_is_told_and_still_begins_from_pure_noise():
    process, network = FewStepConfig(base=DiffusionConfig(), levels=(399.0,)).build(), Told()
    rng = spawn(1, [0])
    data = process.sample(network, torch.tensor([0]), SPEC, rng, FewStepSampling())
    noise = spawn(1, [0]).normal(*SPEC.shape)
    link = process.base.chain()[399]
    assert network.times == [399.0]
    assert torch.allclose(data, (noise - link.sigma * 0.3 * noise) / link.alpha, atol=1e-5)


def test_edm_begins_from_noise_of_its_level():
    process = FewStepConfig(base=EdmConfig()).build()
    assert process.times == pytest.approx((80.0,))
    noise = torch.randn(2, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(process.state(None, noise, 80.0), 80 * noise)


def test_broken_samples_are_named():
    process = FewStepConfig(base=FlowConfig()).build()

    def broken(x, t, label):
        return torch.where(label.view(-1, 1, 1, 1) == 1, torch.nan, x)

    with pytest.raises(NonFinite, match=r"samples \[1\]"):
        process.sample(broken, torch.tensor([0, 1]), SPEC, spawn(0, [0, 1]), FewStepSampling())


def test_it_has_no_loss_of_its_own():
    with pytest.raises(ConfigError, match="add distillation"):
        FewStepConfig(base=FlowConfig()).build().loss(Told(), torch.zeros(1), torch.zeros(1), spawn(0, [0]))


@pytest.mark.parametrize(
    ("base", "wrong", "complaint"),
    [
        (FlowConfig(), {"levels": (0.5, 0.0)}, "from noise to data"),
        (FlowConfig(), {"levels": (0.0, 1.0)}, "times from 0"),
        (FlowConfig(), {"levels": ()}, "from noise to data"),
        (DiffusionConfig(), {"levels": (1000.0,)}, "999 down to 1"),
        (DiffusionConfig(), {"levels": (500.5,)}, "whole steps"),
        (DiffusionConfig(), {"levels": (500.0, 500.0)}, "from noise to data"),
        (EdmConfig(), {"levels": (-1.0,)}, "above 0"),
        (EdmConfig(), {"levels": 2, "shift": 0.5}, "shift"),
    ],
)
def test_wrong_levels_are_refused(base, wrong, complaint):
    with pytest.raises(ValidationError, match=complaint):
        FewStepConfig(base=base, **wrong)
