import pytest
import torch

from genlab.convert import var
from genlab.core.errors import CheckpointError
from genlab.networks.flexvar import FlexVAR
from genlab.networks.mvar import MVAR
from genlab.networks.var import VAR

SCALES = (1, 2, 3)
SIZES = {"channels": 3, "vocab": 11, "num_classes": 4, "width": 64, "depth": 2, "heads": 2, "mlp_ratio": 2.0}


def official(network, prefix="") -> dict[str, torch.Tensor]:
    """The network's weights with what published files have besides."""
    state = dict(network.state_dict())
    state |= {"lvl_1L": torch.zeros(1, 14), "attn_bias_for_masking": torch.zeros(1, 1, 14, 14)}
    for number in range(len(network.blocks)):
        state[f"blocks.{number}.attn.zero_k_bias"] = torch.zeros(64)
        state[f"blocks.{number}.attn.patch_nums"] = torch.tensor(SCALES)
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("family", "network"),
    [
        ("var", VAR(SCALES, **SIZES)),
        ("var", VAR(SCALES, **SIZES, shared_adaln=True)),
        ("flexvar", FlexVAR(SCALES, **SIZES)),
        ("mvar", MVAR(SCALES, **SIZES, unit_attention=True)),
    ],
)
def test_a_published_file_names_its_network(family, network):
    state = official(network, prefix="_orig_mod.")
    assert var.family_of(state) == family
    found = var.arguments(state, scales=SCALES)
    assert found == {**SIZES, "scales": SCALES, "unit_attention": True} | (
        {} if family == "mvar" else {"shared_adaln": network.shared_ada_lin is not None}
    )
    loaded = var.load(var.NETWORKS[family](**found), state)
    x, label = torch.randn(1, 13, 3), torch.tensor([4])
    assert torch.equal(loaded(x, label), network(x, label))


def test_without_unit_attention_heads_are_those_of_published_sizes():
    state = official(MVAR(SCALES, **SIZES, unit_attention=False))
    assert var.arguments(state, scales=SCALES)["heads"] == 1
    assert var.arguments(state, heads=2, scales=SCALES)["heads"] == 2
    assert var.arguments(state, scales=SCALES)["unit_attention"] is False


def test_published_sizes_and_schedules_are_recognised():
    with torch.device("meta"):
        state = VAR((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32, 4096, width=1024, depth=16, heads=16).state_dict()
    found = var.arguments(state)
    assert found["scales"] == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert var.preset_of("var", found) == "VAR-d16"
    assert var.preset_of("var", {**found, "depth": 17}) is None


def test_foreign_and_odd_files_are_refused():
    assert var.family_of({"weight": torch.zeros(1)}) is None
    with pytest.raises(CheckpointError, match="pos_start"):
        var.arguments({"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="14 positions are of no published schedule"):
        var.arguments(official(VAR(SCALES, **SIZES)))
    with pytest.raises(CheckpointError, match=r"lacks head\.bias"):
        state = official(VAR(SCALES, **SIZES))
        del state["head.bias"]
        var.load(VAR(SCALES, **SIZES), state)
