from dataclasses import replace

import pytest
import torch

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.core.generator import Generator
from genlab.processes.diffusion import Diffusion
from genlab.processes.edm import Edm
from genlab.processes.flow import Flow
from genlab.processes.guidance import Guidance, guide
from genlab.processes.vp import VpDiffusion
from genlab.tokenization.pixels import Pixels
from samplers.noise import spawn


class Linear(Network):
    """slope x + label, and the number of rows of each call."""

    def __init__(self, slope, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.slope = torch.nn.Parameter(torch.tensor(slope))
        self.calls = []

    def forward(self, x, t, label):
        self.calls.append(len(x))
        return self.slope * x + label.view(-1, 1, 1, 1)


X, LABEL = torch.ones(2, 1, 2, 2), torch.tensor([0, 3])
PROCESSES = [Flow(), Diffusion(), Edm()]


def generator(slope=0.5, num_classes=4, process=None, size=8, names=("a", "b", "c", "d")):
    process = process or Flow()
    sampling = {Flow: "flow", Diffusion: "diffusion", Edm: "edm", VpDiffusion: "vp"}[type(process)]
    module = __import__(f"genlab.processes.{sampling}", fromlist=["x"])
    kind = next(v for k, v in vars(module).items() if k.endswith("Config")).Sampling
    network = Linear(slope, num_classes)
    return Generator(Pixels(channels=1).build(size), network, process, kind(steps=3), tuple(names[:num_classes]))


def test_guidance_leads_away_from_the_weaker_network():
    strong, weak = Linear(2.0), Linear(1.0)
    out = guide(strong, LABEL, Guidance(3.0), weak)(X, 0.5)
    assert out[:, 0, 0, 0].tolist() == [1 + 3 * (2 - 1), 4 + 3 * (5 - 4)]
    assert strong.calls == weak.calls == [2]


def test_a_weaker_network_without_classes_is_told_none():
    out = guide(Linear(2.0), LABEL, Guidance(3.0), Linear(1.0, num_classes=0))(X, 0.5)
    assert out[:, 0, 0, 0].tolist() == [1 + 3 * (2 - 1), 1 + 3 * (5 - 1)]


@pytest.mark.parametrize(("scale", "t"), [(1.0, 0.5), (3.0, 0.9)])
def test_without_guidance_the_weaker_network_is_not_called(scale, t):
    weak = Linear(1.0)
    guide(Linear(2.0), LABEL, Guidance(scale, interval=(0.2, 0.8)), weak)(X, t)
    assert not weak.calls


@pytest.mark.parametrize("process", PROCESSES, ids=["flow", "diffusion", "edm"])
def test_samples_follow_the_weaker_network(process):
    strong, weak, same = (generator(slope, process=process) for slope in (0.5, 0.3, 0.5))
    settings = strong.sampling.model_copy(update={"guidance": 2.0})
    free = strong.sampling.model_copy(update={"guidance": 1.0})

    def sample(made, settings):
        return made.sample(LABEL, spawn(0, range(2)), settings)

    plain = sample(strong, free)
    torch.testing.assert_close(sample(strong.guided_away_from(same), settings), plain)
    guided = sample(strong.guided_away_from(weak), settings)
    assert (guided - plain).abs().max() > 1e-3
    assert (guided - sample(strong, settings)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (generator(size=16), "another tokenizer"),
        (generator(num_classes=3), "3 classes"),
        (generator(names=("a", "b", "c", "e")), "other names"),
        (generator(process=Flow(path="gvp")), "another process"),
    ],
)
def test_generators_that_do_not_go_together_are_refused(other, what):
    with pytest.raises(ConfigError, match=what):
        generator().guided_away_from(other)


def test_processes_without_autoguidance_say_so():
    plain = generator(process=VpDiffusion())
    with pytest.raises(ConfigError, match="VpDiffusion has none"):
        plain.guided_away_from(replace(plain))


def test_guidance_falls_from_the_noise_to_the_data():
    guidance = Guidance(3.0, power=1.0)
    scales = guidance.at(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(scales, torch.tensor([3.0, 2.0, 1.0]))
    network = Linear(2.0)
    rows = guide(network, LABEL, guidance)(X, torch.tensor([0.25, 0.75]))
    for row, t in enumerate((0.25, 0.75)):
        torch.testing.assert_close(guide(network, LABEL, guidance)(X, t)[row], rows[row])
