"""Network evaluations are counted where they happen."""

import torch
from torch import nn

from genlab.core.evaluations import Evaluations


class Piecewise(nn.Module):
    """Three blocks; `step` goes past `forward`, as sequence models do."""

    def __init__(self):
        super().__init__()
        self.condition = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    def forward(self, x):
        return self.step(x) + self.condition(x)

    def step(self, x, blocks=3):
        for block in self.blocks[:blocks]:
            x = block(x)
        return x


def test_rows_of_whole_evaluations_count():
    network = Piecewise()
    with Evaluations().counting(network) as evaluations:
        network(torch.zeros(4, 2))
        network(torch.zeros(8, 2))
    network(torch.zeros(16, 2))
    assert evaluations.rows == 12 and not network._forward_pre_hooks


def test_pieces_count_where_the_network_is_never_called_itself():
    network = Piecewise()
    with Evaluations().counting(network) as evaluations:
        assert evaluations.rows == 0
        network.condition(torch.zeros(99, 2))
        network.step(torch.zeros(4, 5, 2))
        network.step(torch.zeros(4, 5, 2), blocks=1)
    assert evaluations.rows == 8
