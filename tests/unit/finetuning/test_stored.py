from copy import deepcopy

import pytest
import torch

from genlab import config as configs
from genlab.core.errors import CheckpointError, ConfigError
from genlab.finetuning import adapters, stored
from genlab.finetuning.settings import FinetuneSettings
from genlab.networks.arflow import ARFlow
from genlab.networks.dit import DiT
from genlab.training.ema import Ema

METHODS = [{"name": "difffit"}, {"name": "lora", "rank": 2}, {"name": "full"}]


def dit(seed=0, **changes) -> DiT:
    torch.manual_seed(seed)
    sizes = {"grid": (4, 4), "channels": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}
    net = DiT(**{**sizes, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def tuned(method, base, **changes):
    """A network a few random steps from `base`, and its origin."""
    network = dit(seed=1, **changes)
    begun = stored.begin(network, base, FinetuneSettings(base="base", method=method), seed=7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network, begun


@pytest.mark.parametrize("changes", [{}, {"num_classes": 3}, {"grid": (8, 8)}], ids=["same", "classes", "grid"])
@pytest.mark.parametrize("method", METHODS[:2], ids=["difffit", "lora"])
def test_base_and_adapter_make_the_merged_network(method, changes):
    base = dit()
    network, begun = tuned(method, base, **changes)
    t, label = torch.rand(2), torch.tensor([0, 2])
    x = torch.randn(2, 2, *changes.get("grid", (4, 4)))
    expected = network.eval()(x, t, label)
    merged, adapter = stored.split(dit(seed=2, **changes), network.state_dict(), begun, "here")
    assert merged.keys() == base.state_dict().keys()
    joined = stored.join(dit(seed=3, **changes), base, adapter, begun, "here")
    for name, value in joined.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(joined.eval()(x, t, label), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_belongs_to_one_base():
    network, begun = tuned({"name": "difffit"}, dit())
    _, adapter = stored.split(dit(), network.state_dict(), begun, "here")
    with pytest.raises(CheckpointError, match="restore that base"):
        stored.join(dit(), dit(seed=4), adapter, begun, "here")


def test_a_base_of_another_kind_or_size_is_named():
    settings = FinetuneSettings(base="runs/other")
    other = ARFlow(grid=(4, 4), channels=2, width=16, depth=2, heads=2, num_classes=5)
    with pytest.raises(CheckpointError, match="runs/other is a ARFlow, the recipe's network a DiT"):
        stored.begin(dit(), other, settings, 0)
    with pytest.raises(CheckpointError, match=r"finetune.base=runs/other: .*built differently"):
        stored.begin(dit(), dit(depth=1), settings, 0)


def test_a_method_that_does_not_suit_the_network_is_refused_before_anything_is_built():
    tree = configs.read("configs/digits/dit_difffit.yaml")
    assert configs.validate(tree, "recipe").finetune.method.name == "difffit"
    with pytest.raises(ConfigError, match="no transformer blocks"):
        network = {"name": "edm", "width": 8, "multipliers": [1], "blocks": 1, "attention": []}
        configs.validate({**tree, "network": network, "process": {"name": "edm"}, "sampling": {}}, "recipe")
    for key, value in {"blocks": [9], "name": "adapter", "blcoks": [1]}.items():
        finetune = {"base": "x", "method": {"name": "difffit", key: value}}
        with pytest.raises(ConfigError, match=r"finetune\.method"):
            configs.validate({**tree, "finetune": finetune}, "recipe")


def test_the_average_holds_what_is_trained_and_swaps_only_that():
    network, _ = tuned({"name": "difffit"}, dit())
    ema = Ema(network, 0.5)
    assert set(adapters.trainable(network)) <= ema.state.keys()
    assert "blocks.0.attn.qkv.weight" not in ema.state
    before = deepcopy(network.state_dict())
    with torch.no_grad():
        network.blocks[0].gamma1.add_(1)
    ema.update()
    with ema.swapped():
        torch.testing.assert_close(network.blocks[0].gamma1, before["blocks.0.gamma1"] + 0.5)
        assert network.blocks[0].attn.qkv.weight.equal(before["blocks.0.attn.qkv.weight"])
    torch.testing.assert_close(network.blocks[0].gamma1, before["blocks.0.gamma1"] + 1)
