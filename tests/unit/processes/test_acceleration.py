import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.dit import DiT
from genlab.networks.edm_unet import EdmUNet
from genlab.nn.cache_policies import AccumulatedGate, Between, Every, FirstBlockGate, Forecast
from genlab.nn.token_merging import match
from genlab.processes.acceleration import CacheSettings, caching
from genlab.processes.diffusion import Diffusion
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from samplers.noise import spawn

SPEC = LatentSpec("continuous", 2, (4, 4), 4)


@pytest.fixture(scope="module")
def network() -> DiT:
    torch.manual_seed(0)
    net = DiT(grid=(4, 4), channels=2, width=32, depth=3, heads=2, num_classes=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


def sample(net, **options) -> torch.Tensor:
    settings = FlowSampling(sampler="euler", steps=20, **options)
    return Flow().sample(net, torch.tensor([0, 2]), SPEC, spawn(0, range(2)), settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "branches", "interval": 1},
        {"kind": "branches", "interval": 1, "order": 2},
        {"kind": "first_block", "threshold": 1e-9},
        {"kind": "accumulated", "threshold": 1e-9},
        {"kind": "none"},
    ],
)
def test_a_cache_that_reuses_nothing_changes_nothing(network, settings):
    exact, names = sample(network), [name for name, _ in network.named_modules()]
    with caching(network, CacheSettings(**settings), 20) as usage:
        cached = sample(network)
    torch.testing.assert_close(cached, exact, rtol=0, atol=0)
    assert all(usage.full)
    assert [name for name, _ in network.named_modules()] == names


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "branches"},
        {"kind": "branches", "order": 1, "interval": 4},
        {"kind": "first_block", "threshold": 0.3},
        {"kind": "accumulated", "threshold": 0.3},
    ],
)
def test_a_cache_saves_steps_and_stays_close(network, settings):
    exact = sample(network)
    with caching(network, CacheSettings(**settings), 20) as usage:
        cached = sample(network)
    assert len(usage.full) == 20
    assert 1 <= sum(usage.full) < 15
    assert 0 < (cached - exact).square().mean().sqrt() < 0.1 * exact.std()


@pytest.mark.parametrize("kind", ["branches", "first_block", "accumulated"])
def test_another_batch_size_is_computed_in_full(network, kind):
    with caching(network, CacheSettings(kind=kind, threshold=10, interval=9), 20) as usage:
        sample(network, guidance=2.0, guidance_interval=(0.5, 1.0))
    assert usage.full[10]
    assert not all(usage.full)


def test_the_network_is_itself_again_after_an_error(network):
    before = list(network.modules())
    with pytest.raises(KeyboardInterrupt), caching(network, CacheSettings(kind="branches"), 20):
        raise KeyboardInterrupt
    assert list(network.modules()) == before


def test_networks_without_a_stack_are_refused():
    unet = EdmUNet((4, 4), 2, width=8, multipliers=(1,), blocks=1)
    with pytest.raises(ConfigError, match="plain stack of blocks"):
        caching(unet, CacheSettings(kind="first_block"), 20)


@given(st.integers(1, 4), st.floats(-2, 2), st.floats(-2, 2))
def test_forecasts_continue_straight_lines_exactly(gap, start, slope):
    forecast = Forecast(order=1)
    for step in (0, gap):
        forecast.update(step, torch.tensor([start + slope * step]))
    for step in range(gap, gap + 5):
        assert forecast.at(step).item() == pytest.approx(start + slope * step, abs=1e-4)


def test_schedules():
    assert "".join(".F"[Between(5).is_full(step)] for step in range(11)) == "FFF.F....F."
    assert "".join(".F"[Every(9, 3).is_full(step)] for step in range(9)) == "F.F..F..F"


def test_gates_add_up_or_compare_with_the_last_full_step():
    signals = [torch.full((2,), 1.05**step) for step in range(8)]
    first, added = FirstBlockGate(0.12), AccumulatedGate(0.12, 8)
    assert [first.is_full(signal) for signal in signals] == [True, False, False, True, False, False, True, False]
    assert [added.is_full(signal) for signal in signals] == [True, False, False, True, False, False, True, True]


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 60))
def test_unmerged_tokens_are_their_destinations(rows, columns, amount):
    metric = torch.randn(2, rows * columns, 4, generator=torch.Generator().manual_seed(rows + 10 * columns))
    merging = match(metric, (rows, columns), (2, 2), amount)
    merged = merging.merge(metric)
    gone = min(amount, rows * columns - (rows // 2) * (columns // 2))
    assert merged.shape == (2, rows * columns - gone, 4)
    torch.testing.assert_close(merging.merge(merging.unmerge(merged)), merged)
    if amount == 0:
        torch.testing.assert_close(merging.unmerge(merged), metric)


@pytest.mark.parametrize("process", [Flow(), Diffusion()], ids=["flow", "diffusion"])
def test_sampling_settings_ask_for_a_cache(process, network):
    kind = FlowSampling if isinstance(process, Flow) else DiffusionSampling
    sampler = "euler" if isinstance(process, Flow) else "ddim"

    def sampled(**cache):
        calls = []
        remove = network.blocks[1].attn.qkv.register_forward_hook(lambda *_: calls.append(1)).remove
        settings = kind(sampler=sampler, steps=12, guidance=2.0, cache=CacheSettings(**cache))
        tokens = process.sample(network, torch.tensor([0, 2]), SPEC, spawn(0, range(2)), settings)
        remove()
        return tokens, len(calls)

    exact, calls = sampled()
    same, _ = sampled(kind="branches", interval=1)
    assert same.equal(exact) and calls == 12
    close, fewer = sampled(kind="branches", interval=3)
    assert fewer <= 6 and not close.equal(exact)
    again, calls = sampled()
    assert again.equal(exact) and calls == 12


def test_a_cache_needs_one_call_a_step():
    with pytest.raises(ValueError, match="one network call a step"):
        FlowSampling(sampler="heun", cache=CacheSettings(kind="branches"))
