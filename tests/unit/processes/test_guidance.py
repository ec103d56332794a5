import pytest
import torch

from genlab.core.contracts import Network
from genlab.processes.guidance import Guidance, guide


class Recorder(Network):
    """Returns label + 10 t in every channel and remembers how many rows each call had."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.calls = []

    def forward(self, x, t, label):
        self.calls.append(len(x))
        return torch.zeros_like(x) + (label + 10 * t).view(-1, 1, 1, 1)


X, LABEL = torch.zeros(2, 4, 2, 2), torch.tensor([0, 3])


def call(guidance, t, network=None):
    network = network or Recorder()
    out = guide(network, LABEL, guidance)(X, t)
    return out[:, :, 0, 0], network.calls


def test_guidance_extrapolates_away_from_the_null_label():
    out, calls = call(Guidance(3.0), 0.5)
    assert out[:, 0].tolist() == [4 + 3 * (0 - 4) + 5, 4 + 3 * (3 - 4) + 5]
    assert calls == [4]


def test_scale_one_is_a_single_conditional_pass():
    out, calls = call(Guidance(1.0), 0.5)
    assert out[:, 0].tolist() == [5, 8]
    assert calls == [2]


def test_unconditional_networks_are_never_doubled():
    assert call(Guidance(3.0), 0.5, Recorder(num_classes=0))[1] == [2]


@pytest.mark.parametrize(("t", "rows"), [(0.1, 2), (0.2, 4), (0.5, 4), (0.8, 4), (0.9, 2)])
def test_outside_the_interval_the_unconditional_half_is_not_computed(t, rows):
    out, calls = call(Guidance(3.0, interval=(0.2, 0.8)), t)
    assert calls == [rows]
    if rows == 2:
        assert out[:, 0].tolist() == pytest.approx([10 * t, 3 + 10 * t])


def test_times_per_row_obey_the_interval_row_by_row():
    out, _ = call(Guidance(3.0, interval=(0.2, 0.8)), torch.tensor([0.5, 0.9]))
    assert out[:, 0].tolist() == pytest.approx([4 + 3 * (0 - 4) + 5, 3 + 9])


def test_only_the_first_channels_are_guided():
    out, _ = call(Guidance(3.0, channels=3), 0.0)
    assert out[0].tolist() == [-8, -8, -8, 0]


def test_scale_zero_is_unconditional():
    assert call(Guidance(0.0), 0.0)[0][:, 0].tolist() == [4, 4]
