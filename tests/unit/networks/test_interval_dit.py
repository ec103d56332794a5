"""Networks that are told of an interval: IntervalDiT and the transformer of improved mean flow."""

import pytest
import torch
from pydantic import ValidationError

from genlab.convert import improved_mean_flow, mean_flow, shortcut
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.dit import DiT
from genlab.networks.imf_dit import PRESETS, IMFDiT, IMFDiTConfig
from genlab.networks.interval_dit import IntervalDiT, IntervalDiTConfig

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
CODES = LatentSpec(kind="codes", channels=2, grid=(4, 4), image_size=4, vocab=8)
SIZES = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


def filled(network):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


def interval_dit():
    return filled(IntervalDiT((4, 4), 2, num_classes=3, **SIZES))


def imf_dit(**options):
    return filled(IMFDiT((4, 4), 2, mlp_ratio=1.5, head_depth=1, num_classes=3, **SIZES, **options))


def inputs():
    return torch.randn(3, 2, 4, 4), torch.tensor([0.2, 0.6, 1.0]), torch.tensor([0, 2, 3])


@pytest.mark.parametrize("build", [interval_dit, imf_dit])
def test_no_interval_is_one_of_length_zero(build):
    network, (x, t, label) = build(), inputs()
    out = network(x, t, label)
    assert torch.equal(out, network(x, t, label, torch.zeros(3)))
    assert not torch.allclose(out, network(x, t, label, torch.full((3,), 0.5)))


def test_without_an_interval_it_is_a_dit():
    network, (x, t, label) = interval_dit(), inputs()
    plain = DiT((4, 4), 2, num_classes=3, **SIZES)
    embedding = network.t_embedder
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("t_embedder")}
    state |= {f"t_embedder.{name}": value for name, value in embedding.time.state_dict().items()}
    plain.load_state_dict(state)
    with torch.no_grad():
        offset = embedding.interval(torch.zeros(1))[0]
        plain.t_embedder.mlp[2].bias += offset
        torch.testing.assert_close(plain(x, t, label), network(x, t, label))


@pytest.mark.parametrize("config", [IntervalDiTConfig(**SIZES), IMFDiTConfig(**SIZES, head_depth=1)])
def test_a_fresh_network_is_zero_and_learns_everywhere(config):
    network, (x, t, label) = config.build(SPEC, 3), inputs()
    out = network(x, t, label, t)
    assert out.shape == x.shape and not out.any()
    filled(network)(x, t, label, t).square().sum().backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert all(name.startswith(("v_heads", "v_final_layer")) for name in unused)


@pytest.mark.parametrize("build", [interval_dit, imf_dit])
def test_recomputed_activations_give_the_same_gradients(build):
    network, (x, t, label) = build(), inputs()
    gradients = []
    for network.activation_checkpointing in (False, True):
        network.zero_grad()
        network(x, t, label, t).square().sum().backward()
        gradients.append(network.x_embedder.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_both_heads_are_each_of_them():
    network, (x, t, label) = imf_dit(), inputs()
    told = {"guidance": torch.tensor([1.0, 2.0, 8.0]), "window": torch.tensor([[0.0, 1.0], [0.4, 0.6], [0.1, 0.9]])}
    both = network(x, t, label, t, **told, head="both")
    heads = [network(x, t, label, t, **told, head=head) for head in ("average", "velocity")]
    torch.testing.assert_close(both, torch.cat(heads, dim=1))
    without = imf_dit(velocity_head=False)
    without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("v_")})
    torch.testing.assert_close(without(x, t, label, t, **told), heads[0])


def test_guidance_is_none_by_default_and_matters():
    network, (x, t, label) = imf_dit(), inputs()
    window = torch.tensor([0.0, 1.0]).expand(3, 2)
    assert torch.equal(network(x, t, label, t), network(x, t, label, t, torch.ones(3), window))
    assert not torch.allclose(network(x, t, label, t), network(x, t, label, t, torch.full((3,), 4.0), window))


PUBLISHED = {"iMF-B/2": (145.6, 88.9), "iMF-M/2": (230.6, 173.9), "iMF-L/2": (509.8, 409.1), "iMF-XL/2": (711.1, 610.4)}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_numbers_of_parameters(preset):
    latents = LatentSpec(kind="continuous", channels=4, grid=(32, 32), image_size=256)
    for velocity_head, millions in zip((True, False), PUBLISHED[preset]):
        with torch.device("meta"):
            network = IMFDiTConfig(preset=preset, velocity_head=velocity_head).build(latents, 1000)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_configs_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="continuous latents: got codes"):
        IntervalDiTConfig(**SIZES).build(CODES, 3)
    with pytest.raises(ConfigError, match="continuous latents: got codes"):
        IMFDiTConfig(**SIZES, head_depth=1).build(CODES, 3)
    with pytest.raises(ConfigError, match="patch must divide"):
        IMFDiTConfig(**{**SIZES, "patch": 3}, head_depth=1).build(SPEC, 3)
    with pytest.raises(ValidationError, match="head_depth is part of depth"):
        IMFDiTConfig(**SIZES)
    with pytest.raises(ValidationError, match="even number: got width 15, heads 3; try width 192"):
        IMFDiTConfig(width=15, heads=3)


@pytest.mark.parametrize("velocity_head", [True, False])
def test_sizes_of_published_files_are_read_from_their_weights(velocity_head):
    network = imf_dit(velocity_head=velocity_head)
    theirs = {
        key.replace("proj.weight", "proj._flax_linear.weight", 1): value for key, value in network.state_dict().items()
    }
    theirs["x_embedder.proj.weight"] = theirs.pop("x_embedder.proj._flax_linear.weight")
    again = improved_mean_flow.load(IMFDiT(**improved_mean_flow.imf_dit_arguments(theirs, (4, 4))), theirs)
    x, t, label = inputs()
    torch.testing.assert_close(again(x, t, label, t), network(x, t, label, t))
    with pytest.raises(CheckpointError, match="omega_tokens"):
        improved_mean_flow.imf_dit_arguments({key: value for key, value in theirs.items() if key != "omega_tokens"})


@pytest.mark.parametrize(
    ("load", "build"),
    [(mean_flow.load, interval_dit), (shortcut.load, interval_dit), (improved_mean_flow.load, imf_dit)],
)
def test_files_of_something_else_are_refused(load, build):
    with pytest.raises(CheckpointError):
        load(build(), {"conv1.weight": torch.zeros(1)})
