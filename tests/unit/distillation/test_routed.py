import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, GenlabError
from genlab.networks.dit import DiTConfig
from genlab.networks.routed import Routed, RoutedConfig

OWNERS = (0, 0, 1, 2, 1, 2)


class Marked(Network):
    """Says who it is, and of which sample and class it was asked."""

    num_classes = len(OWNERS)

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))
        self.asked = []

    def forward(self, x, t, label):
        self.asked.append(len(x))
        return torch.stack([self.number.expand(len(x)), x[:, 0], t, label.float()], dim=1)


def routed():
    return Routed([Marked(k) for k in range(3)], OWNERS)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_every_sample_meets_the_owner_of_its_class_and_comes_back_in_its_place(labels):
    network, label = routed(), torch.tensor(labels)
    x, t = torch.arange(len(label)).float()[:, None], torch.rand(len(label))
    expected = [torch.tensor(OWNERS)[label].float(), x[:, 0], t, label.float()]
    assert torch.equal(network(x, t, label), torch.stack(expected, dim=1))
    needed = {OWNERS[value] for value in labels}
    assert [len(student.asked) for student in network.students] == [int(k in needed) for k in range(3)]


def test_no_class_has_no_student():
    network = routed()
    with pytest.raises(GenlabError, match="without a class"):
        network(torch.zeros(2, 1), torch.zeros(2), torch.tensor([0, network.null_label]))


def test_gradients_reach_the_students_that_were_asked():
    network = routed()
    network(torch.zeros(2, 1), torch.zeros(2), torch.tensor([0, 2])).sum().backward()
    assert [student.number.grad is not None for student in network.students] == [True, True, False]


def test_a_config_builds_its_students_and_refuses_other_classes():
    config = RoutedConfig[DiTConfig](student=DiTConfig(width=16, depth=1, heads=2), class_to_student=(0, 1, 1))
    spec = LatentSpec("continuous", 1, (4, 4), 4)
    network = config.build(spec, 3)
    assert len(network.students) == 2 and network.num_classes == 3
    assert RoutedConfig[DiTConfig].model_validate(config.model_dump()) == config
    with pytest.raises(ConfigError, match="3 classes: got 4"):
        config.build(spec, 4)
    with pytest.raises(ValueError, match="without a class"):
        RoutedConfig[DiTConfig](student=DiTConfig(), class_to_student=(0, 2))
