"""Processes with the exact denoiser of a small data set: nothing is learnt, so what goes wrong is the process's."""

import pytest
import torch

from genlab.core.contracts import LatentSpec, Network, to_float
from genlab.data.digits import Digits
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.processes.paths import coefficients
from samplers.noise import spawn

SPEC = LatentSpec("continuous", 1, (8, 8), 8)
LABEL = torch.arange(10).repeat(2)


@pytest.fixture(scope="module")
def digits():
    """Images [N,64] float64 and labels [N]."""
    images, label = (source := Digits().build()).fetch(list(range(len(source))))
    return to_float(images)[:, 0].flatten(1).double(), label


class Ideal(Network):
    """E[data | state, class] over the digits, as noise (with variances) or velocity; label 10 stands for any class."""

    num_classes = 10

    def __init__(self, process, digits):
        super().__init__()
        self.process, self.images, self.classes = process, *digits

    def forward(self, x, t, label):
        state = x.flatten(1).double()
        if isinstance(self.process, Diffusion):
            link = self.process.chain().gather(t.long(), 2)
            alpha, sigma = link.alpha.double(), link.sigma.double()
        else:
            c = coefficients("linear", t.double(), state)
            alpha, sigma = c.alpha, c.sigma.clamp(min=1e-3)
        distance = (state[:, None] - alpha[:, None] * self.images).square().sum(2) / (2 * sigma**2)
        other = (label[:, None] != self.classes) & (label[:, None] != 10)
        data = torch.softmax(-distance.masked_fill(other, torch.inf), dim=1) @ self.images
        noise = (state - alpha * data) / sigma
        out = [data - noise] if isinstance(self.process, Flow) else [noise, torch.zeros_like(noise)]
        return torch.stack(out, dim=1).unflatten(2, (8, 8)).float()


@pytest.mark.parametrize(
    ("process", "settings"),
    [
        (Diffusion(variance="learned_range"), DiffusionSampling(sampler="ddpm", steps=25, guidance=1.5)),
        (Diffusion(variance="learned_range"), DiffusionSampling(sampler="ddim", steps=25, guidance=1.5)),
        (Diffusion(schedule="cosine"), DiffusionSampling(sampler="ddim", steps=25, guidance=1.5)),
        (Flow(), FlowSampling(sampler="heun", steps=12, guidance=1.5)),
        (Flow(), FlowSampling(sampler="euler_maruyama", steps=25, guidance=1.5)),
    ],
    ids=["ddpm", "ddim", "cosine", "ode", "sde"],
)
def test_samples_are_of_their_class(process, settings, digits):
    images, classes = digits
    found = process.sample(Ideal(process, digits), LABEL, SPEC, spawn(0, range(len(LABEL))), settings)
    nearest = torch.cdist(found.flatten(1).double(), images).argmin(dim=1)
    assert (classes[nearest] == LABEL).float().mean() >= 0.95


def test_the_class_is_worth_much_less_to_a_noise_prediction_than_to_a_velocity(digits):
    """Why noise prediction learns the classes of such data late: its loss hardly asks for them."""
    images, classes = digits
    process = Diffusion()
    rng = spawn(0, range(400))
    rows, step, noise = rng.integers(len(images)), rng.integers(1000).clamp(min=30), rng.normal(64).double()
    link = process.chain().gather(step, 2)
    state = (link.alpha * images[rows] + link.sigma * noise).view(-1, 1, 8, 8)
    gaps = {"noise": 0.0, "velocity": 0.0}
    for label, sign in ((classes[rows], -1), (torch.full_like(rows, 10), 1)):
        error = Ideal(process, digits)(state, step, label)[:, 0].flatten(1) - noise
        gaps["noise"] += sign * error.square().mean().item()
        gaps["velocity"] += sign * (error / link.alpha).square().mean().item()  # v - v' = (noise - noise') / alpha
    assert 0 < 5 * gaps["noise"] < gaps["velocity"]
