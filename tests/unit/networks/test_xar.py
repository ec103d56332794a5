import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genlab.convert import xar
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.xar import PRESETS, XAR, XARConfig
from genlab.networks.xar_entities import Groups, entities
from genlab.nn.block_causal import BlockCausal, visible
from genlab.nn.cell_cache import CellCache

TINY = {"grid": (4, 6), "channels": 3, "width": 16, "encoder_depth": 1, "decoder_depth": 2, "heads": 2}
TINY |= {"num_classes": 5, "dropout": 0.0}
SIDES = st.integers(1, 4)
KINDS = [
    {"entity": "patch"},
    {"entity": "cell", "entity_size": 2},
    {"entity": "cell", "entity_size": 1},
    {"entity": "subsample", "entity_size": 2},
    {"entity": "image"},
    {"entity": "scale"},
    {"entity": "scale", "scales": (2, 3, 6)},
    {"entity": "cell", "entity_size": 1, "patch": 2},
]


def awake(**changes) -> XAR:
    """A tiny xAR with biases."""
    torch.manual_seed(0)
    network = XAR(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch(network: XAR, size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, network.entities.length, network.z_proj.in_features, generator=generator)
    t = torch.randint(0, 1001, (size, len(network.entities)), generator=generator).float()
    return x, t, torch.randint(0, 6, (size,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, st.sampled_from(["cell", "subsample", "patch", "image"]))
def test_every_position_belongs_to_one_entity(rows, columns, size, kind):
    grid = (rows * size, columns * size)
    order = entities(grid, kind, size)
    assert isinstance(order, Groups)
    assert sorted(order.order.tolist()) == list(range(grid[0] * grid[1]))
    assert sum(order.sizes) == order.length == grid[0] * grid[1]
    image = torch.arange(2.0 * order.length).view(1, 2, *grid)
    assert torch.equal(order.restore(order.arrange(image)), image)
    assert torch.equal(order.show(order.arrange(image)), image)
    if kind == "cell":
        spread = [order.places[order.span(g)].amax(0) - order.places[order.span(g)].amin(0) for g in range(len(order))]
        assert all(one.tolist() == [size - 1, size - 1] for one in spread)


def test_scales_average_and_end_at_the_grid():
    pyramid = entities((4, 8), "scale")
    assert pyramid.sizes == (1, 2, 8, 32)
    image = torch.randn(2, 3, 4, 8)
    tokens = pyramid.arrange(image)
    torch.testing.assert_close(tokens[:, 0], image.mean((2, 3)))
    assert torch.equal(pyramid.restore(tokens), image)
    assert pyramid.places[0].tolist() == [1.5, 3.5]  # the middle of the grid
    torch.testing.assert_close(pyramid.show(tokens[:, :1]), image.mean((2, 3), keepdim=True).expand(-1, -1, 4, 8))
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert pyramid.choose(mask, 1).nonzero()[:, 1].tolist() == [0, 1, 3, 11]


@pytest.mark.parametrize("sizes", [[1] * 12, [4] * 3, [1, 4, 9], [2] * 12, [1, 2] * 6, [7]])
def test_attention_without_masks_is_the_masked_one(sizes):
    q, k, v = torch.randn(3, 2, 2, sum(sizes), 4)
    expected = F.scaled_dot_product_attention(q, k, v, visible(sizes))
    torch.testing.assert_close(BlockCausal(sizes)(q, k, v), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_with_a_cache_equal_the_whole_sequence(kind):
    network = awake(**kind).eval()
    x, t, label = batch(network)
    expected, cache = network(x, t, label), network.new_cache(3)
    for entity in range(len(network.entities)):
        span = network.entities.span(entity)
        m = network.modulations(t[:, entity], label)
        network.step(torch.randn_like(x[:, span]), entity, m, cache)  # what is not yet finished is written over
        torch.testing.assert_close(network.step(x[:, span], entity, m, cache), expected[:, span], atol=1e-5, rtol=1e-5)
        network.remember(x[:, span], entity, m, cache)
    width, layers, floats = 16, 3, 4
    assert cache.bytes == 2 * 3 * layers * network.entities.length * width * floats


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_entities_see_those_before_them_and_not_those_after(kind):
    network = awake(**kind)
    x, t, label = batch(network)
    if len(network.entities) == 1:
        return
    changed = x.clone()
    changed[:, network.entities.span(1)] += 1
    difference = (network(changed, t, label) - network(x, t, label)).abs().amax((0, 2))
    assert difference[network.entities.span(0)].max() == 0
    assert difference[network.entities.span(1)].min() > 0
    assert difference[network.entities.span(len(network.entities) - 1)].max() > 1e-5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_images_go_in_and_come_out(kind):
    network = awake(**kind)
    image, label = torch.randn(2, 3, 4, 6), torch.tensor([0, 5])
    tokens = network.entities.arrange(image)
    expected = network(tokens, torch.full((2, len(network.entities)), 700.0), label)
    assert torch.equal(network(image, torch.full((2,), 700.0), label), network.entities.restore(expected))


def test_gradients_reach_every_parameter_with_and_without_checkpointing():
    gradients = []
    for recompute in (False, True):
        network = awake(dropout=0.1)
        network.activation_checkpointing = recompute
        torch.manual_seed(3)
        network(*batch(network, 16)).square().sum().backward()
        silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
        assert silent == []
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


def test_compiled_equals_eager_without_graph_breaks():
    network = awake()
    inputs = batch(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), network(*inputs))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_stays_near_float32_and_returns_the_input_dtype(how):
    network = awake()
    inputs = batch(network)
    expected = network(*inputs)
    if how == "weights":
        got = network.bfloat16()(*inputs)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = network(*inputs)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


SPEC = LatentSpec(kind="continuous", channels=16, grid=(16, 16), image_size=256)
PUBLISHED = {"xAR-B": 172.64, "xAR-L": 608.40, "xAR-H": 1186.02}  # millions


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_the_published_size_and_are_known_by_their_shapes(preset):
    with torch.device("meta"):
        network = XARConfig(preset=preset).build(SPEC, num_classes=1000)
    millions = sum(value.numel() for value in network.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[preset], abs=0.01)
    arguments = xar.xar_arguments(network.state_dict())
    assert xar.preset_of(arguments) == preset
    assert (arguments["grid"], arguments["entity_size"], arguments["num_classes"]) == ((16, 16), 8, 1000)
    with torch.device("meta"):
        assert XAR(**{**arguments, "mlp_multiple": 1}).hidden == network.hidden


def test_official_weights_there_and_back_with_hidden_features_added():
    network = awake(grid=(4, 4), entity_size=2)  # int(16 * 8/3) = 42 hidden features
    state = xar.save(network)
    assert state["mask"].shape == (1, 1, 16, 16)
    assert state["decoder_blocks.1.attn.rope.freqs_cos"].shape == (16, 8)
    arguments = xar.xar_arguments(state)  # with the rotary tables, heads are known
    assert (arguments["heads"], arguments["mlp_multiple"]) == (2, 8)
    twin = xar.load(XAR(**arguments), state).eval()
    assert (network.hidden, twin.hidden) == (42, 48)
    inputs = batch(network)
    torch.testing.assert_close(twin(*inputs), network(*inputs))
    again = xar.save(twin)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_averaged_weights_come_first():
    assert xar.weights({"model": {"a": 1}, "model_ema": {"a": 2}, "epoch": 3}) == ({"a": 2}, "model_ema")
    assert xar.weights({"model": {"a": 1}}) == ({"a": 1}, "model")
    assert xar.weights({"a": 1}) == ({"a": 1}, "flat")


def test_foreign_checkpoints_are_refused():
    network = awake(grid=(4, 4))
    state = xar.save(network)
    with pytest.raises(CheckpointError, match="no xAR checkpoint"):
        xar.xar_arguments({"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="give --heads"):
        xar.xar_arguments({name: value for name, value in state.items() if "rope" not in name})
    with pytest.raises(CheckpointError, match="table mask differs"):
        xar.load(awake(grid=(4, 4), entity="patch"), state)
    with pytest.raises(CheckpointError, match=r"\.freqs differs"):
        xar.load(awake(grid=(4, 4), heads=1), state)
    with pytest.raises(CheckpointError, match="does not fit"):
        xar.load(awake(grid=(4, 4), channels=4), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entity_size": 4}, "divide the grid of tokens: got a cell of 4 for 4 x 6; try 2"),
        ({"entity": "subsample", "entity_size": 3}, "got a subsample of 3 for 4 x 6; try 2"),
        ({"entity": "scale", "scales": (1, 2, 4)}, "end at the grid of tokens: got .1, 2, 4. for 4 x 6"),
        ({"entity": "scale", "scales": (3, 2, 6)}, "go up"),
        ({"patch": 4}, "network.patch must divide the latent grid: got patch 4 for a grid of 4 x 6"),
        ({"heads": 3}, "divisible by heads: got width 16, heads 3"),
        ({"width": 12}, "multiple of 4 features .*: got 6"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        XAR(**{**TINY, **change})


def test_a_cache_that_is_too_short():
    network = awake(grid=(4, 4), entity_size=2)
    x, m = torch.zeros(2, 4, 3), network.modulations(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="2 rows of 8 tokens, and is to take 2 rows up to token 12"):
        network.step(x, 2, m, CellCache(3, 2, 8))
    with pytest.raises(ConfigError, match=r"too short: it holds 1 rows.*new_cache"):
        network.step(x, 0, m, network.new_cache(1))


def test_config_refuses_what_cannot_be_built():
    with pytest.raises(ValidationError, match="divisible by heads"):
        XARConfig(width=100, heads=3)
    with pytest.raises(ValidationError, match="of cells and subsamples: got 2 for image"):
        XARConfig(entity="image", entity_size=2)
    with pytest.raises(ValidationError, match=r"of entity scale: got .4. for cell"):
        XARConfig(scales=(4,))
    with pytest.raises(ConfigError, match="continuous"):
        XARConfig().build(LatentSpec("codes", 8, (16, 16), 256, vocab=16), 10)
