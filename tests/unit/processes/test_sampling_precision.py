"""Samples in bfloat16 stay near those in float32, and compiled networks give the same ones."""

import pytest
import torch

from genlab.core.contracts import LatentSpec
from genlab.networks.dit import DiT
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from samplers.noise import spawn

SPEC = LatentSpec("continuous", 4, (8, 8), 64)
FLOW = (Flow(), FlowSampling(sampler="heun", steps=4, guidance=2.0, guidance_interval=(0.3, 1.0)))
DIFFUSION = (Diffusion(), DiffusionSampling(sampler="ddpm", steps=8, guidance=2.0))


def network(depth: int) -> DiT:
    torch.manual_seed(0)
    made = DiT((8, 8), 4, patch=2, width=64, depth=depth, heads=2, num_classes=5).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            parameter.normal_(std=0.05)
    return made


def sample(made, process, settings):
    return process.sample(made, torch.tensor([0, 3, 4]), SPEC, spawn(0, range(3)), settings)


@pytest.mark.parametrize(("process", "settings"), [FLOW, DIFFUSION], ids=["flow", "diffusion"])
def test_bfloat16_samples_are_within_two_percent(process, settings):
    made = network(4)
    expected = sample(made, process, settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(made, process, settings)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_compiled_network_gives_the_same_samples():
    made, euler = network(1), FlowSampling(sampler="euler", steps=3, guidance=2.0)
    expected = sample(made, Flow(), euler)
    torch._dynamo.reset()
    made.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(sample(made, Flow(), euler), expected, rtol=1e-4, atol=1e-5)
