"""Networks that keep weights at fixed magnitudes get to do so before each step."""

import torch

from genlab.core.generator import Generator
from genlab.networks.edm2 import Edm2
from genlab.processes.edm import Edm, EdmConfig
from genlab.tokenization.pixels import Pixels
from genlab.training.generation import GenerationObjective
from genlab.training.objective import Role


def test_edm2_weights_are_normalised_before_a_step_and_mean_the_same():
    torch.manual_seed(0)
    network = Edm2(grid=(8, 8), channels=1, num_classes=3, width=8, multipliers=(1,), blocks=1, attention=())
    generator = Generator(Pixels(channels=1).build(8), network, Edm(), EdmConfig.Sampling())
    objective = GenerationObjective(generator, Role(network), 0.1)
    x, t, label = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    network.eval()
    before = network(x, t, label)
    name, weight = max(network.named_parameters(), key=lambda pair: pair[1].numel())
    with torch.no_grad():
        weight.mul_(5)
    grown = weight.norm().item()
    objective.turns(0)
    assert weight.norm().item() < 0.3 * grown, name
    torch.testing.assert_close(network(x, t, label), before, rtol=1e-3, atol=1e-3)
