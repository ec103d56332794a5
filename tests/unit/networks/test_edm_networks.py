import pytest
import torch
from pydantic import ValidationError

from genlab.convert import edm
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks import edm2, edm_unet
from genlab.networks.edm2 import Edm2, Edm2Config
from genlab.networks.edm_unet import EdmUNet, EdmUNetConfig
from genlab.nn import magnitude
from genlab.nn.resample import Resample

SONG = {"family": "song", "channels_per_head": None}
SIZES = {"grid": (8, 8), "channels": 3, "num_classes": 5, "width": 8, "multipliers": (1, 2), "blocks": 1}
VARIANTS = {
    "adm": {"channels_per_head": 8},
    "adm-wide": {"channels_per_head": 4, "augment_features": 9, "blocks": 2},
    "ddpmpp": SONG,
    "ncsnpp": {**SONG, "time_features": "fourier", "time_multiplier": 2, "encoder": "residual", "taps": (1, 3, 3, 1)},
    "skips": {**SONG, "encoder": "skip", "decoder": "skip", "multipliers": (2, 1), "num_classes": 0},
    "edm2": {"channels_per_head": 8, "uncertainty_features": 4},
    "edm2-told": {"channels_per_head": 8, "multipliers": (2, 4), "time_multiplier": 1, "embedding_multiplier": 3},
    "edm2-unconditional": {"channels_per_head": 4, "num_classes": 0, "grid": (8, 12), "uncertainty_features": 6},
}


def awake(name: str, **changes) -> EdmUNet | Edm2:
    """A tiny network whose zero-initialised layers have been given something to say."""
    torch.manual_seed(0)
    kind = Edm2 if name.startswith("edm2") else EdmUNet
    network = kind(**{**SIZES, "attention": (4,), **VARIANTS[name], **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def batch(network, size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = next(name.partition("_")[0].split("x") for name in network.enc)
    x = torch.randn(size, 3, *map(int, sides), generator=generator)
    t = torch.randn(size, generator=generator) / 4
    return x, t, torch.randint(0, network.num_classes + 1, (size,), generator=generator)


@pytest.mark.parametrize("name", VARIANTS)
def test_official_names_and_shapes_tell_the_whole_architecture(name):
    network = awake(name)
    state = edm.official(network, network.state_dict())
    if name == "ncsnpp":
        state["model.enc.4x4_down.conv0.resample_filter"] = Resample("down", (1, 3, 3, 1)).kernel
    heads = VARIANTS[name]["channels_per_head"] or 64
    again = edm.put(edm.build(edm.arguments(state, heads)), state)
    inputs = batch(network)
    torch.testing.assert_close(again(*inputs), network(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name):
    network = awake(name).train()
    options = {"log_variance": True} if name.startswith("edm2") else {}
    options |= {"augment": torch.randn(3, 9)} if name == "adm-wide" else {}
    out = network(*batch(network), **options)
    sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [key for key in silent if not key.endswith("qkv.bias")] == []


@pytest.mark.parametrize("name", ["adm", "ncsnpp", "edm2"])
def test_checkpointed_activations_change_no_gradient(name):
    gradients = []
    for checkpointing in (False, True):
        network = awake(name).train()
        network.activation_checkpointing = checkpointing
        network(*batch(network)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [EdmUNet, Edm2])
def test_a_fresh_network_says_exactly_nothing(kind):
    network = kind(**SIZES, attention=(4,), channels_per_head=8)
    assert network(*batch(network)).abs().max() == 0


def test_no_class_is_the_row_of_zeros():
    network = awake("adm")
    x, t, _ = batch(network)
    out = network(x, t, torch.full((3,), network.null_label))
    torch.testing.assert_close(out, network(x, t, torch.zeros(3, 5)))


@pytest.mark.parametrize(
    ("module", "kind", "preset", "classes", "side", "millions"),
    [
        (edm_unet, EdmUNet, "adm-imagenet64", 1000, 64, 295.90),
        (edm_unet, EdmUNet, "ddpmpp-cifar10", 0, 32, 55.73),
        (edm_unet, EdmUNet, "ddpmpp-faces64", 0, 64, 61.80),
        (edm2, Edm2, "edm2-xs", 1000, 64, 124.71),
        (edm2, Edm2, "edm2-xxl", 1000, 64, 1523.16),
    ],
)
def test_presets_have_the_published_sizes(module, kind, preset, classes, side, millions):
    with torch.device("meta"):
        network = kind(grid=(side, side), channels=3, num_classes=classes, **module.PRESETS[preset])
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert edm.preset_of(edm.arguments(edm.official(network, network.state_dict()))) == preset


def test_magnitudes_stay_at_one_through_a_fresh_edm2():
    torch.manual_seed(0)
    network = Edm2(grid=(16, 16), channels=4, width=32, channels_per_head=32)
    seen: list[torch.Tensor] = []
    for layer in [*network.enc.values(), *network.dec.values()]:
        layer.register_forward_hook(lambda _module, _args, out: seen.append(out.square().mean().sqrt()))
    network(torch.randn(4, 4, 16, 16), torch.randn(4) / 4, torch.zeros(4, dtype=torch.int64))
    assert all(0.7 < value < 1.4 for value in seen), seen


def test_normalised_weights_are_the_same_function():
    network = awake("edm2")
    inputs = batch(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() else 1)
    before = network(*inputs)
    network.normalise_weights()
    torch.testing.assert_close(network(*inputs), before, rtol=1e-3, atol=1e-3)
    rows = network.out_conv.weight.square().flatten(1).mean(1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=1e-3, atol=0)


def test_concatenation_weighs_both_parts_equally():
    a, b = torch.randn(2, 64, 32, 32), torch.randn(2, 8, 32, 32)
    joined = magnitude.concatenate(a, b)
    assert joined[:, :64].square().sum() == pytest.approx(joined[:, 64:].square().sum().item(), rel=0.05)
    assert joined.square().mean() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_inside(taps):
    x = torch.full((1, 2, 8, 8), 3.0)
    for direction in ("up", "down"):
        inner = Resample(direction, taps)(x)[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


def test_configs_build_and_say_what_is_wrong():
    spec = LatentSpec("continuous", 1, (28, 28), 28)
    assert EdmUNetConfig(width=16).build(spec, 10).num_classes == 10
    assert Edm2Config(width=16).build(spec, 0).num_classes == 0
    with pytest.raises(ConfigError, match="halve a grid of 28 x 28 3 times"):
        EdmUNetConfig(multipliers=(1, 1, 1, 1)).build(spec, 10)
    with pytest.raises(ConfigError, match="continuous"):
        Edm2Config().build(LatentSpec("codes", 1, (28, 28), 28, vocab=5), 10)
    with pytest.raises(ValidationError, match="only of family song"):
        EdmUNetConfig(encoder="skip")


def test_a_foreign_checkpoint_is_refused():
    with pytest.raises(CheckpointError, match="no network of EDM"):
        edm.arguments({"x_embedder.proj.weight": torch.zeros(1)})
    network = awake("adm")
    state = edm.official(network, network.state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        edm.put(awake("ddpmpp"), state)
