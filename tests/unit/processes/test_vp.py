import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, NonFinite
from genlab.processes.guidance import Guidance, guide
from genlab.processes.vp import VpDiffusion, VpDiffusionConfig, pooled_noise
from genlab.processes.vp_sampling import VpSampling
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
LABEL = torch.tensor([0, 1, 2])
MEANS, STD = torch.tensor([-1.0, 0.0, 2.0, 0.5]), 0.3


class Gaussian(Network):
    """The exact noise in class means plus N(0, STD^2), told the step; the null class has a mean of its own."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls: list[tuple[float, int]] = []

    def forward(self, x, t, label):
        self.calls.append((t[0].item(), len(x)))
        c = VpDiffusion().coefficients(t, x)
        mean = MEANS[label].view(-1, 1, 1, 1)
        return c.sigma * (x - c.alpha * mean) / (c.alpha**2 * STD**2 + c.sigma**2)


class Pyramid(Network):
    """Predicts the same at two resolutions."""

    num_classes = 3

    def forward(self, x, t, label, every_resolution=False):
        return (pooled_noise(x, 2), x) if every_resolution else x


@pytest.mark.parametrize("sampler", ["dpm_singlestep", "dpm_multistep"])
@pytest.mark.parametrize("solve_for", ["data", "noise"])
def test_samples_have_the_moments_of_the_data(sampler, solve_for):
    settings = VpSampling(sampler=sampler, solve_for=solve_for, order=2, steps=40, denoise=True)
    label = torch.arange(3).repeat_interleave(40)
    samples = VpDiffusion().sample(Gaussian(), label, SPEC, spawn(0, range(120)), settings).view(3, -1)
    torch.testing.assert_close(samples.mean(1), MEANS[:3], atol=0.06, rtol=0)
    torch.testing.assert_close(samples.std(1), torch.full((3,), STD), atol=0.05, rtol=0)


def test_network_calls_are_the_steps_and_their_times_published():
    network = Gaussian()
    VpDiffusion().sample(network, LABEL, SPEC, spawn(0, range(3)), VpSampling(steps=10))
    times = [t for t, _ in network.calls]
    assert times == pytest.approx(torch.linspace(1000, 1, 11)[:-1].tolist(), rel=1e-5)


@pytest.mark.parametrize("power", [None, 2.0])
def test_a_sample_depends_on_nothing_but_its_own_seed(power):
    process, settings = VpDiffusion(), VpSampling(steps=6, guidance=2.0, guidance_power=power, threshold=True)
    whole = process.sample(Gaussian(), LABEL, SPEC, spawn(7, range(3)), settings)
    alone = process.sample(Gaussian(), LABEL[1:2], SPEC, spawn(7, [1]), settings)
    torch.testing.assert_close(whole[1:2], alone)


def test_steps_are_watched_and_the_last_is_the_result():
    seen = []
    settings = VpSampling(steps=8, solve_for="noise", denoise=True)
    got = VpDiffusion().sample(Gaussian(), LABEL, SPEC, spawn(0, range(3)), settings, seen.append)
    assert [(event.step, event.steps) for event in seen] == [(3, 8), (6, 8), (7, 8), (8, 8)]
    assert torch.equal(seen[-1].tokens, got)
    assert seen[0].tokens.mean(dim=(1, 2, 3)).argsort().tolist() == [0, 1, 2]  # a guess of the finished sample


def test_a_broken_network_is_named_with_step_and_sample():
    class Broken(Gaussian):
        def forward(self, x, t, label):
            return torch.where((label == 1).view(-1, 1, 1, 1), math.nan, super().forward(x, t, label))

    with pytest.raises(NonFinite, match=r"step 3 of 6, in samples \[1\]"):
        VpDiffusion().sample(Broken(), LABEL, SPEC, spawn(0, range(3)), VpSampling(steps=6))


def test_guidance_grows_with_a_power_and_is_constant_without():
    process, network, x = VpDiffusion(), Gaussian(), torch.randn(3, 2, 4, 4)

    def scale(t, power, **options):
        guided = process.denoiser(network, LABEL, VpSampling(guidance=3.0, guidance_power=power, **options))
        plain, full = (guide(network, LABEL, Guidance(value, (0.0, 1000.0)))(x, t) for value in (1.0, 2.0))
        return ((guided(x, t) - plain) / (full - plain)).mean().item() + 1

    assert scale(500.0, None) == pytest.approx(3, abs=1e-3)
    assert scale(1000.0, 2.0) == pytest.approx(1, abs=1e-3)
    assert scale(500.0, 1.0) == pytest.approx(2, abs=1e-3)
    assert scale(500.0, 2.0) == pytest.approx(1 + 2 * 0.5 * (1 - math.cos(math.pi / 4)), abs=1e-3)
    assert scale(1.0, 2.0) == pytest.approx(3, abs=1e-2)
    assert scale(500.0, 1.0, guidance_interval=(0.6, 1.0)) == pytest.approx(1, abs=1e-3)


def test_a_ramp_takes_times_of_each_sample():
    process, network, x = VpDiffusion(), Gaussian(), torch.randn(3, 2, 4, 4)
    guided = process.denoiser(network, LABEL, VpSampling(guidance=3.0, guidance_power=2.0))
    times = torch.tensor([900.0, 500.0, 3.0])
    expected = [guided(x, t)[row] for row, t in enumerate(times.tolist())]
    torch.testing.assert_close(guided(x, times), torch.stack(expected))


def test_the_loss_of_the_noise_itself_is_nothing():
    data, noise = torch.zeros(4, 2, 8, 8), torch.randn(4, 2, 8, 8)
    step = torch.tensor([1, 10, 500, 1000])
    process = VpDiffusion(resolutions=2)
    sigma = process.coefficients(step.float(), data).sigma

    class Oracle(Pyramid):
        def forward(self, x, t, label, every_resolution=False):
            return super().forward(x / sigma, t, label, every_resolution)

    losses = process.loss_at(Oracle(), data, noise, step, LABEL)
    assert set(losses) == {"loss", "mse_0", "mse_1"}
    assert losses["loss"].max() < 1e-8


def test_losses_are_weighed_and_single_ones_need_no_pyramid():
    tokens, label = torch.randn(5, 2, 8, 8), torch.zeros(5, dtype=torch.int64)
    losses = VpDiffusion(resolutions=2).loss(Pyramid(), tokens, label, spawn(0, range(5)))
    torch.testing.assert_close(losses["loss"], 0.25 * losses["mse_0"] + losses["mse_1"])
    single = VpDiffusion().loss(Pyramid(), tokens, label, spawn(0, range(5)))
    torch.testing.assert_close(single["loss"], losses["mse_1"])
    assert VpDiffusion(resolutions=3).weights == pytest.approx((0.25, 0.5, 1.0))


def test_training_steps_run_from_1_to_all():
    steps = []

    class Listener(Pyramid):
        def forward(self, x, t, label):
            steps.extend(t.tolist())
            return x

    VpDiffusion(steps=4).loss(Listener(), torch.zeros(200, 1, 2, 2), torch.zeros(200), spawn(0, range(200)))
    assert set(steps) == {1.0, 2.0, 3.0, 4.0}


def test_pooled_noise_keeps_its_variance():
    noise = torch.randn(64, 1, 32, 32)
    assert pooled_noise(noise, 4).std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("resolutions", "network", "message"),
    [(2, Gaussian(), "predicts at several resolutions"), (3, Pyramid(), "got 3 for 2 stages; set it to 2")],
)
def test_networks_of_other_resolutions_are_refused(resolutions, network, message):
    with pytest.raises(ConfigError, match=message):
        VpDiffusion(resolutions=resolutions).loss(network, torch.randn(3, 2, 4, 4), LABEL, spawn(0, range(3)))


def test_coefficients_meet_the_training_steps_and_fill_the_gaps():
    process, one, zero = VpDiffusion(), torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    step = torch.tensor([1, 1000])
    c = process.coefficients(step.float(), one)
    torch.testing.assert_close(c.alpha, process.noised(one, zero, step))
    torch.testing.assert_close(c.sigma, process.noised(zero, one, step))
    between = process.coefficients(400.5, one)
    assert process.coefficients(401.0, one).alpha < between.alpha < process.coefficients(400.0, one).alpha


def test_impossible_settings():
    with pytest.raises(ValidationError, match="set it to data"):
        VpSampling(threshold=True, solve_for="noise")
    with pytest.raises(ValidationError, match="must go up"):
        VpSampling(guidance_interval=(1.0, 0.0))
    with pytest.raises(ValidationError, match="one weight a resolution: got 1 for 2"):
        VpDiffusionConfig(resolutions=2, resolution_weights=(1.0,))
    assert VpDiffusionConfig(resolutions=2).build() == VpDiffusion(resolutions=2)
    assert "guidance_power" in VpSampling().idle()
