from copy import deepcopy

import pytest
import torch

from genlab.core.errors import CheckpointError, ConfigError
from genlab.finetuning import adapters
from genlab.finetuning.difffit import DiffFitSettings
from genlab.finetuning.lora import LoraSettings
from genlab.finetuning.transfer import scaled_positions, transfer
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
from genlab.networks.edm_unet import EdmUNet
from genlab.nn.embed import sincos_2d

EVERYWHERE = DiffFitSettings(placement=("block", "attn", "mlp"))
METHODS = {
    "block": DiffFitSettings(),
    "everywhere": EVERYWHERE,
    "second block": DiffFitSettings(placement=("attn", "block"), blocks=(1,)),
    "biases": DiffFitSettings(placement=(), class_table=False),
    "lora": LoraSettings(rank=2, targets=("qkv", "proj", "fc1", "fc2", "w12", "w3")),
}


def network(**changes) -> DiT:
    """A tiny DiT whose zero-initialised layers have been given something to say."""
    torch.manual_seed(0)
    sizes = {"grid": (4, 4), "channels": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}
    net = DiT(**{**sizes, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 4, 4, generator=generator), torch.rand(3, generator=generator), torch.tensor([0, 3, 5])


def trained(net: torch.nn.Module, steps: int = 3) -> torch.nn.Module:
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        net(*batch()).square().sum().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("changes", [{}, {"swiglu": True, "rms_norm": True, "rope": True}], ids=["dit", "lightning"])
@pytest.mark.parametrize("method", METHODS)
def test_tuning_starts_as_the_base_and_merges_into_its_names(method, changes):
    base = network(**changes)
    tuned = adapters.apply(deepcopy(base), METHODS[method])
    torch.testing.assert_close(tuned(*batch()), base(*batch()))
    frozen = {name: value.detach().clone() for name, value in tuned.named_parameters() if not value.requires_grad}
    trained(tuned)
    for name, value in frozen.items():
        assert tuned.get_parameter(name).equal(value), name
    after = tuned(*batch())
    assert (after - base(*batch())).abs().max() > 1e-3
    copied = deepcopy(tuned)
    merged = adapters.merge(tuned)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(merged(*batch()), after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copied(*batch()), after)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_difference_needs_to_be_kept(method):
    base = network()
    tuned = trained(adapters.apply(deepcopy(base), METHODS[method]))
    kept = adapters.difference(tuned, base)
    assert set(kept) <= set(adapters.trainable(tuned))
    assert sum(value.numel() for value in kept.values()) < 0.3 * sum(p.numel() for p in base.parameters())
    again = adapters.restore(deepcopy(base), METHODS[method], kept)
    torch.testing.assert_close(again(*batch()), tuned(*batch()), rtol=0, atol=0)


def test_a_copy_has_scales_of_its_own():
    tuned = adapters.apply(network(), DiffFitSettings())
    copied = deepcopy(tuned)
    before = copied(*batch())
    with torch.no_grad():
        tuned.blocks[0].gamma1.mul_(3)
    torch.testing.assert_close(copied(*batch()), before, rtol=0, atol=0)
    assert (tuned(*batch()) - before).abs().max() > 1e-4


def test_what_is_trained_is_chosen_by_kind_and_not_by_name():
    names = set(adapters.trainable(adapters.apply(network(rms_norm=True), DiffFitSettings(biases=False))))
    assert {name for name in names if "gamma" not in name and "norm" not in name} == {
        "y_embedder.embedding_table.weight"
    }
    assert "blocks.0.norm1.weight" in names
    assert sum("gamma" in name for name in names) == 4


def test_networks_of_other_kinds():
    torch.manual_seed(0)
    flow = ARFlow(grid=(4, 4), channels=2, width=16, depth=2, heads=2, num_classes=5)
    assert "blocks.1.mlp.gamma" in adapters.trainable(adapters.apply(flow, EVERYWHERE))
    unet = EdmUNet((4, 4), 2, 5, width=8, multipliers=(1,), blocks=1, attention=())
    with pytest.raises(ConfigError, match="no transformer blocks"):
        adapters.apply(unet, DiffFitSettings())
    assert all(
        "norm" in name or name.endswith("bias")
        for name in adapters.trainable(adapters.apply(unet, DiffFitSettings(placement=())))
    )


def test_bad_requests_are_named():
    with pytest.raises(ConfigError, match="blocks 0 to 1"):
        adapters.apply(network(), DiffFitSettings(blocks=(2,)))
    with pytest.raises(ConfigError, match="targets"):
        adapters.apply(network(), LoraSettings(targets=("nothing",)))
    with pytest.raises(CheckpointError, match="does not fit"):
        adapters.restore(network(), DiffFitSettings(blocks=(0,)), {"blocks.1.gamma1": torch.ones(16)})


def test_lora_starts_from_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    states = []
    base = network()
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        states.append(adapters.difference(adapters.apply(deepcopy(base), LoraSettings(rank=2, seed=seed)), base))
        assert torch.rand(1) == expected
    name = "blocks.0.attn.qkv.lora_A.default.weight"
    assert states[0][name].equal(states[1][name])
    assert not states[0][name].equal(states[2][name])


def test_new_classes_keep_no_class_and_the_rest():
    base, other = network(), network(num_classes=3)
    transfer(other, base)
    table = other.y_embedder.embedding_table.weight
    assert table[3].equal(base.y_embedder.embedding_table.weight[5])
    assert 0.005 < table[:3].std() < 0.05
    x, t, _ = batch()
    torch.testing.assert_close(other(x, t, torch.full((3,), 3)), base(x, t, torch.full((3,), 5)))


def test_a_larger_grid_keeps_the_phase_of_each_place():
    base, other = network(), network(grid=(8, 8))
    transfer(other, base)
    finer = other.pos_embed.unflatten(1, (4, 4))
    torch.testing.assert_close(finer[:, ::2, ::2].flatten(1, 2), base.pos_embed)
    torch.testing.assert_close(scaled_positions(16, (2, 3), (2, 3)).float(), sincos_2d(16, (2, 3)))
    with pytest.raises(CheckpointError, match="only classes and the grid"):
        transfer(network(width=32), base)
    with pytest.raises(CheckpointError, match="built differently"):
        transfer(network(depth=3), base)
