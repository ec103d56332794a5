import pytest
import torch

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.flexvar import FlexVAR, FlexVARConfig
from genlab.networks.mvar import MVAR, MVARConfig
from genlab.networks.next_scale import NextScaleNetwork
from genlab.networks.var import VAR, VARConfig
from genlab.nn.kv_cache import KvCache
from genlab.nn.mamba2 import scan
from genlab.nn.scales import lengths_of
from samplers.noise import spawn

SIZES = {"channels": 3, "vocab": 11, "num_classes": 4, "width": 32, "depth": 2, "heads": 2}
RAGGED = (1, 2, 3, 5)


def perturbed(network: NextScaleNetwork) -> NextScaleNetwork:
    """Away from its initial weights, with which blocks and head hardly speak."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


@pytest.fixture(
    params=[
        lambda: VAR(RAGGED, **SIZES),
        lambda: VAR(RAGGED, **SIZES, shared_adaln=True, unit_attention=False),
        lambda: FlexVAR(RAGGED, **SIZES),
        lambda: MVAR(RAGGED, **SIZES),
        lambda: MVAR(RAGGED, **SIZES, unit_attention=False),
    ],
    ids=["var", "var-shared", "flexvar", "mvar", "mvar-plain"],
)
def network(request) -> NextScaleNetwork:
    return perturbed(request.param())


def inputs(network: NextScaleNetwork, rows: int, grids=None) -> torch.Tensor:
    return torch.randn(rows, sum(lengths_of(grids or network.grids)[1:]), SIZES["channels"])


def scale_by_scale(network, x, label, scales=None):
    """The logits, by steps that know only what came before."""
    progress = network.start(label, scales)
    parts = [None, *x.split(lengths_of(progress.grids)[1:], dim=1)]
    return torch.cat([network.step(progress, part) for part in parts], dim=1)


@torch.no_grad()
def test_steps_with_caches_and_memories_are_the_full_pass(network):
    x, label = inputs(network, 3), torch.tensor([2, 0, network.null_label])
    torch.testing.assert_close(scale_by_scale(network, x, label), network(x, label), atol=2e-5, rtol=0)


@torch.no_grad()
def test_fine_scales_do_not_reach_back(network):
    x, label = inputs(network, 1), torch.tensor([1])
    changed = x.clone()
    changed[:, 4:] += 1.0  # from the third scale on
    before, after = network(x, label), network(changed, label)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


@torch.no_grad()
def test_the_cache_is_keys_and_values_once_in_the_dtype_of_the_run():
    network = VAR(RAGGED, **SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        progress = network.start(torch.tensor([0, 1]))
        before = None
        for part in (None, *inputs(network, 2).split(lengths_of(network.grids)[1:], dim=1)):
            network.step(progress, part)
            cache = progress.contexts[0][0].__self__
            held = cache._keys.data_ptr(), cache._values.data_ptr()
            assert before in (None, held)
            before = held
    assert cache._keys.shape == cache._values.shape == (2, 2, sum(lengths_of(network.grids)), 16)
    assert cache._keys.dtype == cache._values.dtype == torch.bfloat16


def test_every_parameter_learns(network):
    network.train()
    network(inputs(network, 2), torch.tensor([0, 1])).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not idle


def test_checkpointing_changes_no_gradient(network):
    x, label = inputs(network, 2), torch.tensor([0, 1])

    def gradient():
        network.zero_grad()
        network(x, label).square().mean().backward()
        return network.word_embed.weight.grad.clone()

    plain = gradient()
    network.activation_checkpointing = True
    torch.testing.assert_close(gradient(), plain)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 3, 7), (1, 2, 4, 9), ((1, 1), (2, 4), (4, 8))])
def test_flexvar_takes_other_grids_and_shapes(scales):
    network = perturbed(FlexVAR(RAGGED, **SIZES))
    progress = network.start(torch.tensor([0]), scales)
    x, label = inputs(network, 1, progress.grids), torch.tensor([3])
    expected = network(x, label, scales)
    assert expected.shape == (1, sum(lengths_of(progress.grids)), SIZES["vocab"])
    torch.testing.assert_close(scale_by_scale(network, x, label, scales), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_both_halves_of_a_guided_batch_take_one_input():
    network = perturbed(VAR((1, 2), **SIZES))
    progress = network.start(torch.tensor([0, 1, 4, 4]))
    network.step(progress, None)
    x = inputs(network, 2)
    both = network.step(progress, x)
    torch.testing.assert_close(both, network(x.repeat(2, 1, 1), torch.tensor([0, 1, 4, 4]))[:, 1:], atol=2e-5, rtol=0)


def test_misuse_is_named():
    network = VAR((1, 2), **SIZES)
    with pytest.raises(ConfigError, match=r"knows the places"):
        network.start(torch.tensor([0]), (1, 3))
    with pytest.raises(ConfigError, match="first must have 1"):
        FlexVAR(RAGGED, **SIZES).start(torch.tensor([0]), (2, 3))
    with pytest.raises(ConfigError, match="inputs of 3 positions"):
        network(inputs(network, 1)[:, :3], torch.tensor([0]))
    progress = network.start(torch.tensor([0]))
    network.step(progress, None)
    network.step(progress, inputs(network, 1))
    with pytest.raises(ConfigError, match="no room for more"):
        network.step(progress, inputs(network, 1))
    with pytest.raises(ValueError, match="too short"):
        KvCache(2).extend(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))


def test_configs_build_what_they_say():
    spec = LatentSpec("multiscale", channels=8, grid=(4, 4), image_size=8, vocab=16, scales=(1, 2, 4))
    for config in (VARConfig(width=64, depth=1, heads=1), FlexVARConfig(width=64, depth=1, heads=1)):
        assert config.build(spec, 3)(torch.zeros(1, 20, 8), torch.tensor([3])).shape == (1, 21, 16)
    with torch.device("meta"):
        assert len(VARConfig(preset="VAR-d16", depth=3).build(spec, 3).blocks) == 3
    with pytest.raises(ConfigError, match="must end with its grid"):
        VARConfig().build(LatentSpec("multiscale", 8, (5, 5), 10, vocab=16, scales=(1, 2, 4)), 3)
    with pytest.raises(ConfigError, match="got continuous"):
        FlexVARConfig().build(LatentSpec("continuous", 8, (4, 4), 8), 3)
    with pytest.raises(ValueError, match="divisible by 32"):
        MVARConfig(width=48, heads=3)


@pytest.mark.parametrize(
    ("config", "millions"),
    [  # specs/var.md, flexvar.md and mvar.md, counted from the official code
        (VARConfig(preset="VAR-d16"), 310.3), (VARConfig(preset="VAR-d30"), 2010.0),
        (FlexVARConfig(preset="FlexVAR-d16"), 315.6), (MVARConfig(preset="M-VAR-d12"), 198.4),
        (MVARConfig(preset="M-VAR-d24"), 1550.1),
    ],
)  # fmt: skip
def test_presets_have_the_published_sizes(config, millions):
    scales = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    vocab = 8912 if isinstance(config, FlexVARConfig) else 4096
    spec = LatentSpec("multiscale", channels=32, grid=(16, 16), image_size=256, vocab=vocab, scales=scales)
    with torch.device("meta"):
        count = sum(p.numel() for p in config.build(spec, 1000).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def sequential(values, step, decay, keys, queries, state):
    """The recurrence as it is written."""
    out = []
    for t in range(values.shape[1]):
        kept = (step[:, t] * decay).exp()[..., None, None]
        state = kept * state + (step[:, t, :, None] * values[:, t])[..., None] * keys[:, t, None, None]
        out.append((state * queries[:, t, None, None]).sum(-1))
    return torch.stack(out, dim=1), state


@pytest.mark.parametrize("length", [1, 5, 64, 150])
def test_the_chunked_scan_is_the_recurrence(length):
    torch.manual_seed(length)
    values, keys, queries = torch.randn(2, length, 3, 8), torch.randn(2, length, 4), torch.randn(2, length, 4)
    step, decay = torch.rand(2, length, 3) * 3, -torch.tensor([0.01, 1.0, 16.0])
    state = torch.randn(2, 3, 8, 4)
    y, after = scan(values, step, decay, keys, queries, state)
    expected, last = sequential(*(x.double() for x in (values, step, decay, keys, queries, state)))
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(after.double(), last, atol=2e-5, rtol=1e-5)


def thin(drop_path, **change):
    torch.manual_seed(0)
    sizes = {"scales": (1, 2), "channels": 4, "vocab": 8, "num_classes": 3, "width": 32, "depth": 3, "heads": 2}
    return VAR(**sizes, gate_init=1.0, drop_path=drop_path, **change).train()


@pytest.mark.parametrize("shared", [False, True])
def test_random_depth_is_each_samples_own_and_keeps_the_mean(shared):
    network, plain = thin(0.9, shared_adaln=shared), thin(0.0, shared_adaln=shared)
    inputs, label = torch.randn(1, 4, 4).expand(6, -1, -1), torch.ones(6, dtype=torch.int64)
    with torch.no_grad():
        out = network(inputs, label, None, spawn(0, range(6)).uniform)
        torch.testing.assert_close(out[4:5], network(inputs[:1], label[:1], None, spawn(0, [4]).uniform))
        assert len(out.flatten(1).unique(dim=0)) > 1
        assert torch.equal(plain(inputs, label), network(inputs, label))  # nothing drawn, nothing left out
        assert torch.equal(plain(inputs, label), network.eval()(inputs, label, None, spawn(0, range(6)).uniform))
        conditions = [network._shared(network.class_emb(label))] * 3
        many = spawn(0, range(20_000)).uniform(6)
        thinned = network._thinned([c[:1].expand(20_000, *c.shape[1:]) for c in conditions], lambda count: many)
    for number, (block, m) in enumerate(zip(network.blocks, thinned)):
        whole = block.modulation(conditions[0])[:1]
        assert torch.equal(m[:, 2:], whole[:, 2:].expand_as(m[:, 2:]))
        shut = (m[:, :2] == 0).all(dim=3).float().mean(dim=0)
        torch.testing.assert_close(shut, torch.full_like(shut, 0.45 * number), atol=0.02, rtol=0)
        factor = (m[:, :2] / whole[:, :2]).mean(dim=0)
        torch.testing.assert_close(factor, torch.ones_like(factor), atol=0.1, rtol=0)
