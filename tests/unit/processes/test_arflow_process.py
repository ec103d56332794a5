import pytest
import torch

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError, GenlabError
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
from genlab.processes.arflow import (
    AutoregressiveFlow,
    AutoregressiveFlowConfig,
    AutoregressiveFlowSampling,
    Remembering,
)
from genlab.processes.flow import Flow
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)


@pytest.fixture
def network() -> ARFlow:
    torch.manual_seed(0)
    network = ARFlow(grid=(4, 4), channels=2, width=16, depth=2, heads=2, num_classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def draws(size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, size, 2, 4, 4, generator=generator)
    return x1, x0, torch.rand(size, generator=generator)


def test_batches_that_come_as_sequences_are_taken_as_they_are(network):
    x1, x0, u = draws(6)
    label = torch.tensor([2, 2, 2, 0, 0, 0])
    t = u.view(2, 3).sort(1).values
    shape = (2, 3, 2, 4, 4)
    xt = t.view(2, 3, 1, 1, 1) * x1.view(shape) + (1 - t).view(2, 3, 1, 1, 1) * x0.view(shape)
    expected = (network(xt, t, label[::3]) - (x1 - x0).view(shape)).square().flatten(2).mean(2).flatten()
    got = AutoregressiveFlow(sequence=3).loss_at(network, x1, x0, u, label)
    torch.testing.assert_close(got, expected)


def test_mixed_batches_are_sorted_into_sequences_and_answered_in_their_order(network):
    x1, x0, u = draws(6)
    label = torch.tensor([2, 2, 2, 0, 0, 0])
    mixed = torch.tensor([3, 0, 4, 1, 2, 5])  # keeps the order within each label
    flow = AutoregressiveFlow(sequence=3)
    expected = flow.loss_at(network, x1, x0, u, label)[mixed]
    torch.testing.assert_close(flow.loss_at(network, x1[mixed], x0[mixed], u[mixed], label[mixed]), expected)


def test_a_lone_image_of_its_label_is_an_ordinary_flow(network):
    x1, x0, u = draws(2)
    u = u.sort().values
    label = torch.tensor([0, 1])
    got = AutoregressiveFlow(sequence=2).loss_at(network, x1, x0, u, label)
    torch.testing.assert_close(got, Flow().loss_at(network, x1, x0, u, label))


def test_sequences_that_do_not_divide_the_batch(network):
    with pytest.raises(ConfigError, match="sequences of 5 for 6 images"):
        AutoregressiveFlow().loss_at(network, *draws(6), torch.zeros(6, dtype=torch.int64))


def test_the_loss_has_gradients_for_the_memory(network):
    x1, _, _ = draws(4)
    loss = AutoregressiveFlow(sequence=4).loss(network, x1, torch.zeros(4, dtype=torch.int64), spawn(0, range(4)))
    loss["loss"].mean().backward()
    decay = network.blocks[0].attn.in_proj.weight.grad[-2:]
    assert decay.abs().max() > 0


@pytest.mark.parametrize("sampler", ["euler", "euler_maruyama"])
def test_samples_do_not_depend_on_the_batch(network, sampler):
    flow, settings = AutoregressiveFlow(), AutoregressiveFlowSampling(sampler=sampler, steps=6, guidance=2.0)
    label = torch.tensor([0, 1, 2])
    together = flow.sample(network, label, SPEC, spawn(1, range(3)), settings)
    alone = flow.sample(network, label[2:], SPEC, spawn(1, [2]), settings)
    torch.testing.assert_close(together[2:], alone)
    torch.testing.assert_close(flow.sample(network, label, SPEC, spawn(1, range(3)), settings), together)


def test_every_call_is_the_next_image(network):
    label = torch.tensor([0, 1])
    velocity = AutoregressiveFlow().denoiser(network, label, AutoregressiveFlowSampling())
    x = torch.randn(2, 3, 2, 4, 4)
    times = [0.1, 0.4, 0.8]
    expected = network(x, torch.tensor([times, times]), label)
    for image, t in enumerate(times):
        torch.testing.assert_close(velocity(x[:, image], t), expected[:, image])


def test_forgetting_empties_the_memory(network):
    x, t, label = torch.randn(2, 2, 4, 4), torch.full((2,), 0.5), torch.tensor([0, 1])
    memory = Remembering(network, forget_every=2)
    first, second, third = (memory(x, t, label) for _ in range(3))
    torch.testing.assert_close(first, third)
    assert (second - first).abs().max() > 1e-4


def test_rows_that_guidance_leaves_out_keep_their_memory(network):
    x, t, label = torch.randn(4, 2, 4, 4), torch.full((4,), 0.5), torch.tensor([0, 1, 3, 3])
    memory, shorter = Remembering(network), Remembering(network)
    memory(x, t, label)
    memory(x[:2], t[:2], label[:2])
    shorter(x, t, label)
    expected = shorter(x, t, label)
    torch.testing.assert_close(memory(x, t, label)[2:], expected[2:])


def test_guidance_that_starts_late_finds_an_empty_memory(network):
    settings = AutoregressiveFlowSampling(steps=6, guidance=2.0, guidance_interval=(0.5, 1.0))
    samples = AutoregressiveFlow().sample(network, torch.tensor([0, 1]), SPEC, spawn(1, range(2)), settings)
    assert samples.isfinite().all()


def test_a_network_without_memory_is_refused():
    network = DiT(grid=(4, 4), channels=2, width=16, depth=1, heads=2, num_classes=3)
    with pytest.raises(ConfigError, match=r"memory: got DiT; choose network arflow"):
        AutoregressiveFlow().denoiser(network, torch.tensor([0]), AutoregressiveFlowSampling())


def test_there_is_no_likelihood(network):
    with pytest.raises(GenlabError, match="depends on the path"):
        AutoregressiveFlow().log_likelihood(network, torch.zeros(1, 2, 4, 4), torch.tensor([0]), spawn(0, [0]))


def test_the_config_builds_the_process():
    flow = AutoregressiveFlowConfig(sequence=4).build()
    assert (flow.sequence, flow.path) == (4, "linear")
