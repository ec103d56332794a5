import pytest
import torch
from pydantic import ValidationError

from genlab.convert import sit
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.dit import PRESETS, DiT, DiTConfig

TINY = {"grid": (4, 6), "channels": 3, "patch": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}
OFFICIAL_KEYS = [
    "pos_embed",
    "x_embedder.proj.weight",
    "x_embedder.proj.bias",
    "t_embedder.mlp.0.weight",
    "t_embedder.mlp.0.bias",
    "t_embedder.mlp.2.weight",
    "t_embedder.mlp.2.bias",
    "y_embedder.embedding_table.weight",
    "final_layer.linear.weight",
    "final_layer.linear.bias",
    "final_layer.adaLN_modulation.1.weight",
    "final_layer.adaLN_modulation.1.bias",
]
OFFICIAL_BLOCK_KEYS = [
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
    "adaLN_modulation.1.weight",
    "adaLN_modulation.1.bias",
]


def awake(**changes) -> DiT:
    """A tiny DiT whose zero-initialised layers have been given something to say."""
    torch.manual_seed(0)
    network = DiT(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, 4, 6, generator=generator)
    return x, torch.rand(size, generator=generator), torch.randint(0, 6, (size,), generator=generator)


def test_a_fresh_network_says_exactly_nothing():
    x, t, label = batch()
    assert DiT(**TINY)(x, t, label).abs().max() == 0


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_shapes(learn_sigma):
    x, t, label = batch()
    assert awake(learn_sigma=learn_sigma)(x, t, label).shape == (3, 6 if learn_sigma else 3, 4, 6)


def test_gradients_reach_every_parameter():
    network = awake()
    network(*batch(16)).square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_samples_do_not_see_each_other():
    network = awake().eval()
    x, t, label = batch()
    torch.testing.assert_close(network(x, t, label)[1:2], network(x[1:2], t[1:2], label[1:2]))


def test_activation_checkpointing_gives_identical_gradients():
    gradients = []
    for recompute in (False, True):
        network = awake()
        network.activation_checkpointing = recompute
        network(*batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


def test_activation_checkpointing_recomputes_every_block():
    network = awake()
    network.activation_checkpointing = True
    calls = []
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network(*batch()).sum().backward()
    assert len(calls) == 2


def test_compiled_equals_eager_without_graph_breaks():
    network = awake()
    inputs = batch()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), network(*inputs))


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


def test_state_dict_has_the_official_keys():
    blocks = [f"blocks.{i}.{key}" for i in range(2) for key in OFFICIAL_BLOCK_KEYS]
    assert set(DiT(**TINY).state_dict()) == {*OFFICIAL_KEYS, *blocks}


def test_unconditional_network_has_one_label():
    network = DiT(**{**TINY, "num_classes": 0})
    assert network.null_label == 0
    assert network.y_embedder.embedding_table.weight.shape[0] == 1


def test_a_network_without_null_row_says_so():
    network = DiT(**TINY, null_row=False)
    assert network.y_embedder.embedding_table.weight.shape[0] == 5
    with pytest.raises(ConfigError, match="no null label"):
        _ = network.null_label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, "must divide the latent grid: got patch 2 for a grid of 4 x 5"),
        ({"heads": 3}, "divisible by heads: got width 16, heads 3"),
        ({"width": 18}, "divisible by 4"),
        ({"num_classes": 0, "null_row": False}, "null row"),
        ({"heads": 8, "rope": True}, "rope needs width / heads divisible by 4: got 16 / 8"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        DiT(**{**TINY, **change})


SPEC = LatentSpec(kind="continuous", channels=4, grid=(32, 32), image_size=256)
PUBLISHED = {  # including the frozen positions, learn_sigma, 32 x 32 latents
    "DiT-S/2": 32_963_360, "DiT-S/4": 32_945_024, "DiT-S/8": 33_148_160,
    "DiT-B/2": 130_512_416, "DiT-B/4": 130_475_648, "DiT-B/8": 130_881_536,
    "DiT-L/2": 458_102_816, "DiT-L/4": 458_053_760, "DiT-L/8": 458_594_816,
    "DiT-XL/2": 675_129_632, "DiT-XL/4": 675_074_432, "DiT-XL/8": 675_683_072,
}  # fmt: skip


def size(config: DiTConfig, spec: LatentSpec) -> int:
    with torch.device("meta"):
        network = config.build(spec, num_classes=1000)
    return sum(value.numel() for value in network.state_dict().values())


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_presets_have_the_published_size(preset):
    assert size(DiTConfig(preset=preset, learn_sigma=True), SPEC) == PUBLISHED[preset]


def test_lightning_presets_have_the_published_size():
    assert set(PRESETS) - set(PUBLISHED) == {
        f"LightningDiT-{name}/{patch}" for name in ("B", "L", "XL", "1p0B", "1p6B") for patch in (1, 2)
    }
    spec = LatentSpec(kind="continuous", channels=32, grid=(16, 16), image_size=256)
    assert size(DiTConfig(preset="LightningDiT-XL/1"), spec) == 675_256_736
    assert size(DiTConfig(preset="LightningDiT-1p0B/1"), spec) == pytest.approx(1.03e9, rel=1e-2)
    assert size(DiTConfig(preset="LightningDiT-1p6B/1"), spec) == pytest.approx(1.63e9, rel=1e-2)
    assert size(DiTConfig(preset="LightningDiT-XL/1", rms_norm=False), spec) < 675_256_736


OPTIONS = [
    {"rms_norm": True},
    {"swiglu": True},
    {"rope": True},
    {"qk_norm": "rms"},
    {"qk_norm": "layer"},
    {"shift": False},
    {"rms_norm": True, "swiglu": True, "rope": True, "qk_norm": "rms", "shift": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_changes_the_network_and_keeps_its_contract(options):
    x, t, label = batch(16)
    assert DiT(**TINY, **options)(x, t, label).abs().max() == 0
    network = awake(**options)
    assert not torch.allclose(network(x, t, label), awake()(x, t, label))
    network(x, t, label).square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_compile_checkpoint_and_stay_near_float32_in_bfloat16(options):
    inputs, network = batch(), awake(**options)
    expected = network(*inputs)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    network.activation_checkpointing = True
    torch.testing.assert_close(network(*inputs), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(*inputs) - expected).abs().max() < 0.05 * expected.abs().max()


def test_rotary_positions_are_no_parameters():
    assert DiT(**TINY, rope=True).state_dict().keys() == DiT(**TINY).state_dict().keys()


def test_config_completes_a_preset_and_lets_explicit_sizes_win():
    config = DiTConfig(preset="DiT-B/4", depth=3)
    assert (config.width, config.heads, config.patch, config.depth) == (768, 12, 4, 3)
    assert DiTConfig(**config.model_dump()) == config


def test_config_refuses_what_cannot_be_built():
    with pytest.raises(ValidationError, match="divisible by heads"):
        DiTConfig(width=100, heads=3)
    with pytest.raises(ValidationError, match="DiT-XL/2"):
        DiTConfig(preset="DiT-M/2")
    with pytest.raises(ConfigError, match="patch 8"):
        DiTConfig(preset="DiT-S/8").build(LatentSpec("continuous", 4, (12, 12), 96), 10)
    with pytest.raises(ConfigError, match="continuous"):
        DiTConfig().build(LatentSpec("codes", 8, (16, 16), 256, vocab=16), 10)


def test_arguments_are_read_from_a_checkpoint():
    network = awake(grid=(6, 6), learn_sigma=True, mlp_ratio=3.0)
    arguments = sit.dit_arguments(network.state_dict(), heads=2)
    twin = sit.load(DiT(**arguments), network.state_dict())
    x, t, label = torch.randn(2, 3, 6, 6), torch.rand(2), torch.tensor([0, 5])
    assert torch.equal(twin(x, t, label), network(x, t, label))


def test_heads_come_from_the_preset_or_the_user():
    with torch.device("meta"):
        published = DiTConfig(preset="DiT-S/4").build(SPEC, 10).state_dict()
    assert sit.dit_arguments(published)["heads"] == 6
    with pytest.raises(CheckpointError, match="give --heads"):
        sit.dit_arguments(awake(grid=(4, 4)).state_dict())


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="no DiT or SiT checkpoint"):
        sit.dit_arguments({"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="does not fit"):
        sit.load(DiT(**TINY), awake(width=32).state_dict())
