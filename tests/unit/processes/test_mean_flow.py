"""Mean flow on Gaussian data, whose average velocities are known in closed form, and the rows that it saves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import NonFinite
from genlab.networks.dit import DiT
from genlab.networks.interval_dit import IntervalDiT
from genlab.processes.improved_mean_flow import (
    ImprovedMeanFlow,
    ImprovedMeanFlowConfig,
    ImprovedMeanFlowSampling,
    Wish,
)
from genlab.processes.mean_flow import MeanFlow, MeanFlowConfig, as_rows, correction, derivative, stretch
from genlab.processes.mean_flow_sampling import MeanFlowSampling
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
STD = 0.5


class Optimal(Network):
    """Average velocities of data N(m, STD^2), m = label / 2; the null label means m = 0. Remembers its calls."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.calls = []

    def mean(self, label):
        return torch.where(label == self.null_label, 0, label) / 2

    def velocity(self, z, t, label):
        """dz/dt = -m + (s'/s) (z - m (1 - t)) with the scale s of `spread`."""
        t, m = as_rows(t, z), as_rows(self.mean(label), z)
        return -m + (t - (1 - t) * STD**2) / spread(t) ** 2 * (z - m * (1 - t))

    def forward(self, z, t, label, interval=None, guidance=None, window=None, head="average"):
        self.calls.append((label, interval, guidance))
        instant = self.velocity(z, t, label)
        if interval is None or head == "velocity":
            return instant
        h, m, at = as_rows(interval, z), as_rows(self.mean(label), z), as_rows(t, z)
        r = at - h
        earlier = m * (1 - r) + spread(r) / spread(at) * (z - m * (1 - at))
        average = torch.where(h == 0, instant, (z - earlier) / torch.where(h == 0, 1, h))
        return torch.cat([average, instant], dim=1) if head == "both" else average


def spread(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def batch(count=6, dtype=torch.float32):
    rng = spawn(3, range(count))
    x, noise = rng.normal(*SPEC.shape).to(dtype), rng.normal(*SPEC.shape).to(dtype)
    t, r = stretch(rng, 0.5, "logit_normal", -0.4, 1.0)
    return x, noise, t.to(dtype), r.to(dtype), rng.integers(4)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_turns_noise_into_data(steps):
    x = MeanFlow().sample(Optimal(), torch.full((8,), 2), SPEC, spawn(0, range(8)), MeanFlowSampling(steps=steps))
    torch.testing.assert_close(x, 1 + STD * spawn(0, range(8)).normal(*SPEC.shape))


def test_a_sample_depends_on_its_own_seed_alone():
    label = torch.tensor([0, 1, 2])
    together = MeanFlow().sample(Optimal(), label, SPEC, spawn(0, range(3)), MeanFlowSampling())
    alone = MeanFlow().sample(Optimal(), label[2:], SPEC, spawn(0, [2]), MeanFlowSampling())
    torch.testing.assert_close(together[2:], alone)


def test_the_true_average_velocity_obeys_the_identity():
    network, (x, noise, t, r, label) = Optimal(), batch(64, torch.float64)
    z, _ = MeanFlow().state(x, noise, t)
    v = network.velocity(z, t, label)
    torch.testing.assert_close(network(z, t, label, t - r) + correction(network, z, v, t, t - r, label), v)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 0.9), st.floats(0, 0.1))
def test_derivative_is_the_limit_of_differences(seed, time, length):
    torch.manual_seed(seed)
    network = IntervalDiT((4, 4), 2, 2, 16, 1, 2, num_classes=3).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    z, v = torch.randn(2, 2, 2, 4, 4, dtype=torch.float64)
    t, h, label = torch.full((2,), time).double(), torch.full((2,), length).double(), torch.tensor([1, 3])

    def ahead(by):
        return network(z + by * v, t + by, label, h + by)

    step = 1e-3  # embeddings compute in float32
    slope = (ahead(step) - ahead(-step)) / (2 * step)
    torch.testing.assert_close(derivative(network, z, v, t, h, label, {}), slope, atol=2e-3, rtol=1e-3)


def test_only_rows_that_need_them_are_evaluated():
    network, process = Optimal(), MeanFlow(omega=0.5, kappa=0.25, guidance_interval=(0.0, 0.6))
    x, noise, _, _, _ = batch(4)
    t = torch.tensor([0.5, 0.5, 0.5, 0.9])
    r = torch.tensor([0.5, 0.1, 0.5, 0.5])
    label = torch.tensor([1, 2, 4, 3])  # the third is dropped, the fourth outside the interval
    process.losses_at(network, x, noise, t, r, label)
    main, guidance, jvp = (rows.tolist() for rows, _, _ in network.calls)
    assert main == [1, 2, 4, 3]
    assert guidance == [4, 4, 2]
    assert jvp == [2, 3]


def test_guidance_mixes_the_networks_own_velocities_inside_its_interval():
    network, process = Optimal(), MeanFlow(omega=0.5, kappa=0.25, guidance_interval=(0.0, 0.6))
    x, noise, _, _, _ = batch(3)
    t, r, label = torch.tensor([0.5, 0.5, 0.9]), torch.tensor([0.5, 0.1, 0.5]), torch.tensor([1, 2, 3])
    z, v = process.state(x, noise, t)
    guided = process.guided_velocity(network, z, v, network(z, t, label, t - r), t, r, label)
    own, none = network.velocity(z, t, label), network.velocity(z, t, torch.full_like(label, 4))
    torch.testing.assert_close(guided[:2], (0.5 * v + 0.25 * none + 0.25 * own)[:2])
    torch.testing.assert_close(guided[2], v[2])


def test_a_loss_of_power_one_is_one_and_has_gradients_through_the_prediction_alone():
    network = IntervalDiT((4, 4), 2, 2, 16, 1, 2, num_classes=4)
    x, noise, t, r, label = batch()
    losses = MeanFlow(omega=2.0).losses_at(network, x, noise, t, r, label)
    torch.testing.assert_close(losses["loss"], torch.ones(6), atol=1e-2, rtol=0)
    losses["loss"].sum().backward()
    z, v = MeanFlow().state(x, noise, t)
    mine = network.final_layer.linear.bias.grad.clone()
    network.zero_grad()
    u, target = network(z, t, label, t - r), MeanFlow(omega=2.0).target(network, z, v, 0 * z, t, r, label)
    error = (u - target).square().flatten(1).sum(1)
    (error / (error.detach() + 0.01)).sum().backward()
    torch.testing.assert_close(network.final_layer.linear.bias.grad, mine)


def test_training_draws_belong_to_samples():
    network, tokens, label = Optimal(), torch.zeros(4, *SPEC.shape), torch.arange(4)
    together = MeanFlow().loss(network, tokens, label, spawn(0, range(4)))["mse"]
    alone = MeanFlow().loss(network, tokens[2:3], label[2:3], spawn(0, [2]))["mse"]
    torch.testing.assert_close(together[2:3], alone)


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_derivatives_see_through_ddp(one_process):
    torch.manual_seed(0)
    network = IntervalDiT((4, 4), 2, 2, 16, 1, 2, num_classes=4)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    x, noise, t, r, label = batch()
    process = MeanFlow(omega=0.5, kappa=0.4)
    bare = process.losses_at(network, x, noise, t, r, label)
    wrapped = process.losses_at(DistributedDataParallel(network), x, noise, t, r, label)
    torch.testing.assert_close(wrapped["mse"], bare["mse"])
    wrapped["loss"].mean().backward()
    assert network.final_layer.linear.weight.grad.abs().max() > 0


def test_losses_work_in_half_precision():
    torch.manual_seed(0)
    network = IntervalDiT((4, 4), 2, 2, 16, 1, 2, num_classes=4, rms_norm=True, qk_norm="rms")
    torch.nn.init.normal_(network.final_layer.linear.weight)
    x, noise, t, r, label = batch()
    process = MeanFlow(omega=0.5, kappa=0.4, norm_power=0.0)
    full = process.losses_at(network, x, noise, t, r, label)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = process.losses_at(network, x, noise, t, r, label)["loss"]
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def test_broken_samples_are_told():
    network = Optimal()
    network.velocity = lambda z, t, label: z * math.nan
    network.mean = lambda label: label * math.nan
    with pytest.raises(NonFinite, match="step 1 of 2"):
        MeanFlow().sample(network, torch.tensor([1]), SPEC, spawn(0, [0]), MeanFlowSampling(steps=2))


@pytest.mark.parametrize("config", [MeanFlowConfig(), ImprovedMeanFlowConfig()])
def test_a_network_without_intervals_is_refused(config):
    with pytest.raises(ValueError, match=r"needs network .*_dit, got DiT"):
        config.check(DiT((4, 4), 2, 2, 16, 1, 2))


def test_an_interval_must_go_up():
    with pytest.raises(ValidationError, match="go up"):
        MeanFlowConfig(guidance_interval=(0.8, 0.2))


# Improved mean flow.


@given(st.floats(0, 4), st.floats(1.5, 20), st.floats(0, 1), st.floats(0, 1))
def test_guidance_scales_invert_their_distribution(power, highest, low, high):
    process = ImprovedMeanFlow(guidance_max=highest, guidance_power=power)
    ends = process.scale(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([1.0, highest], dtype=torch.float64), rtol=1e-6, atol=0)
    first, second = process.scale(torch.tensor([low, high], dtype=torch.float64)).tolist()
    assert (first <= second) == (low <= high) or first == pytest.approx(second)


def test_the_true_velocities_leave_only_the_noise_of_the_data():
    """Both heads then differ from the guided velocity by its guidance and by v - E[v]."""
    network, (x, noise, t, r, label) = Optimal(), batch(32, torch.float64)
    wish = Wish(torch.ones_like(t), torch.tensor([0.0, 1.0]).double().expand(32, 2))
    losses = ImprovedMeanFlow().losses_at(network, x, noise, t, r, wish, label)
    torch.testing.assert_close(losses["mse"], losses["velocity_mse"])


def test_only_rows_that_need_them_are_asked_for_velocities():
    network = Optimal()
    x, noise, _, _, _ = batch(4)
    t, r = torch.tensor([0.5, 0.5, 0.5, 0.9]), torch.tensor([0.5, 0.1, 0.5, 0.5])
    label, scale = torch.tensor([1, 2, 4, 3]), torch.tensor([2.0, 3.0, 4.0, 5.0])
    wish = Wish(scale, torch.tensor([[0.0, 1.0], [0.4, 0.6], [0.0, 1.0], [0.4, 0.6]]))
    ImprovedMeanFlow().losses_at(network, x, noise, t, r, wish, label)
    _, (labels, _, guidance), (jvp, _, _) = network.calls
    assert labels.tolist() == [2, 3, 4, 4]  # own velocities where r < t, then unconditional ones where guidance applies
    assert guidance.tolist() == [3, 1, 1, 1]  # the fourth row is outside its window
    assert jvp.tolist() == [2, 3]


def test_guidance_is_told_to_the_network():
    network = Optimal()
    sampling = ImprovedMeanFlowSampling(steps=2, guidance=3.0, guidance_interval=(0.2, 0.7))
    x = ImprovedMeanFlow().sample(network, torch.tensor([2, 2]), SPEC, spawn(0, range(2)), sampling)
    assert [guidance.tolist() for _, _, guidance in network.calls] == [[3.0, 3.0]] * 2
    torch.testing.assert_close(x, 1 + STD * spawn(0, range(2)).normal(*SPEC.shape))
