import pytest
import torch
from pydantic import ValidationError

from genlab.convert import fit
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.fit import FiT
from genlab.networks.fit_config import PRESETS, FiTConfig
from genlab.nn.channel_patches import to_patches
from genlab.nn.grid_rope import grid_places

TINY = {"grid": (4, 6), "channels": 3, "patch": 2, "width": 32, "depth": 2, "heads": 2, "num_classes": 5}
FIT = {"mlp": "wide_swiglu", "modulation": "full", "q_norm": "none", "k_norm": "none", "learn_sigma": True}
VARIANTS = {
    "FiTv2": {},
    "FiT": FIT,
    "all else": {
        "mlp": "gelu",
        "modulation": "swiglu",
        "norm": "w_rmsnorm",
        "q_norm": "w_layernorm",
        "turn_values": True,
    },
}


def awake(**changes) -> FiT:
    """A tiny FiT whose zero-initialised layers have been given something to say."""
    torch.manual_seed(0)
    network = FiT(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, 4, 6, generator=generator)
    return x, torch.rand(size, generator=generator), torch.randint(0, 6, (size,), generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_network_says_exactly_nothing(variant):
    assert FiT(**{**TINY, **VARIANTS[variant]})(*batch()).abs().max() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    network = awake(**VARIANTS[variant])
    out = network(*batch(16))
    assert out.shape == (16, 6 if variant == "FiT" else 3, 4, 6)
    out.square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_activation_checkpointing_gives_identical_gradients():
    gradients = []
    for recompute in (False, True):
        network = awake()
        network.activation_checkpointing = recompute
        network(*batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


def test_compiled_equals_eager_without_graph_breaks():
    network = awake()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*batch()), network(*batch()))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_stays_near_float32_and_returns_the_input_dtype(how):
    inputs = batch()
    expected = awake()(*inputs)
    if how == "weights":
        got = awake().bfloat16()(*inputs)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = awake()(*inputs)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_network_takes_grids_other_than_its_own():
    x = torch.randn(2, 3, 8, 4)
    _, t, label = batch(2)
    torch.testing.assert_close(awake()(x, t, label), awake(grid=(8, 4))(x, t, label))
    with pytest.raises(ConfigError, match="grid of 5 x 4"):
        awake()(torch.randn(2, 3, 5, 4), t, label)


def test_rows_of_tokens_equal_images():
    x, t, label = batch()
    network = awake()
    rows = network(to_patches(x, 2), t, label, grid_places(2, 3).expand(3, -1, -1))
    torch.testing.assert_close(rows, to_patches(network(x, t, label), 2))


def test_padding_changes_nothing_and_is_zero():
    x, t, label = batch()
    tokens, grid = to_patches(x, 2), grid_places(2, 3).expand(3, -1, -1)
    mask = torch.tensor([1] * 6 + [0] * 2, dtype=torch.uint8).expand(3, -1)
    padded = torch.cat([tokens, torch.randn(3, 2, 12)], dim=1)
    network = awake()
    out = network(padded, t, label, torch.nn.functional.pad(grid, (0, 2)), mask)
    torch.testing.assert_close(out[:, :6], network(tokens, t, label, grid))
    assert out[:, 6:].abs().max() == 0


@pytest.mark.parametrize("online", [False, True])
def test_packed_images_equal_single_ones_under_their_own_conditions(online):
    network = awake(online=online, extrapolation="ntk-aware", trained_side=2)
    x, t, label = batch()
    wide = to_patches(torch.randn(1, 3, 2, 8), 2)
    shapes = [(2, 3), (1, 4)]
    alone = [
        network(rows, t[i : i + 1], label[i : i + 1], grid_places(*shapes[i]), size=torch.tensor([[shapes[i]]]))
        for i, rows in enumerate([to_patches(x[:1], 2), wide])
    ]
    together = network(
        torch.cat([to_patches(x[:1], 2), wide], dim=1),
        t[None, :2],
        label[None, :2],
        torch.cat([grid_places(*shape) for shape in shapes], dim=2),
        torch.tensor([[1] * 6 + [2] * 4]),
        torch.tensor([shapes]),
    )
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_time_shift_moves_times():
    x, t, label = batch()
    network, shifted = awake(), awake(time_shift=3.0)
    torch.testing.assert_close(shifted(x, t, label), network(x, 3 * t / (1 + 2 * t), label))


def test_a_network_without_null_row_says_so():
    with pytest.raises(ConfigError, match="no null label"):
        _ = FiT(**TINY, null_row=False).null_label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, "must divide the latent grid: got patch 2 for a grid of 4 x 5"),
        ({"heads": 3}, "divisible by heads: got width 32, heads 3"),
        ({"width": 36}, "multiple of 4 features"),
        ({"num_classes": 0, "null_row": False}, "null row"),
        ({"online": True, "extrapolation": "yarn"}, "no magnitude: got yarn"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        FiT(**{**TINY, **change})


SPEC = LatentSpec(kind="continuous", channels=4, grid=(32, 32), image_size=256)
PUBLISHED = {
    "FiT-XL/2": 823_599_392,
    "FiTv2-B/2": 128_149_072,  # "128M"
    "FiTv2-XL/2": 671_045_776,
    "FiTv2-3B/2": 2_971_928_080,
}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_the_published_size_and_are_known_by_their_shapes(preset):
    with torch.device("meta"):
        network = FiTConfig(preset=preset).build(SPEC, num_classes=1000)
        assert sum(value.numel() for value in network.parameters()) == PUBLISHED[preset]
        twin = FiT(grid=(32, 32), **fit.fit_arguments(network.state_dict()))
    assert twin.rope == network.rope
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


@pytest.mark.parametrize("variant", ["FiTv2", "FiT"])
def test_arguments_are_read_from_a_checkpoint(variant):
    network = awake(**VARIANTS[variant])
    arguments = fit.fit_arguments(network.state_dict(), heads=2)
    twin = fit.load(FiT(grid=(4, 6), **arguments), network.state_dict())
    assert torch.equal(twin(*batch()), network(*batch()))


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="no FiT checkpoint"):
        fit.fit_arguments({"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="give --heads"):
        fit.fit_arguments(awake().state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        fit.load(FiT(**TINY), awake(width=64).state_dict())


def test_config_completes_a_preset_and_refuses_what_cannot_be_built():
    config = FiTConfig(preset="FiTv2-B/2", depth=3)
    assert (config.width, config.heads, config.depth) == (768, 12, 3)
    assert FiTConfig(**config.model_dump()) == config
    with pytest.raises(ValidationError, match="divisible by heads"):
        FiTConfig(width=100, heads=3)
    with pytest.raises(ValidationError, match="no magnitude"):
        FiTConfig(online=True, extrapolation="yarn")
    with pytest.raises(ConfigError, match="continuous"):
        FiTConfig().build(LatentSpec("codes", 8, (16, 16), 256, vocab=16), 10)
