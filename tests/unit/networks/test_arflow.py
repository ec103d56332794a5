import pytest
import torch
from pydantic import ValidationError

from genlab.convert import arflow
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.arflow import PRESETS, ARFlow, ARFlowConfig

TINY = {"grid": (4, 6), "channels": 3, "patch": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 5}


def awake(**changes) -> ARFlow:
    """A tiny ARFlow whose zero-initialised layers have been given something to say."""
    torch.manual_seed(0)
    network = ARFlow(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch(size: int = 3, images: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, images, 3, 4, 6, generator=generator)
    t = torch.rand(size, images, generator=generator).sort(1).values
    return x, t, torch.randint(0, 6, (size,), generator=generator)


def test_a_fresh_network_says_exactly_nothing():
    assert ARFlow(**TINY)(*batch()).abs().max() == 0


def test_gradients_reach_every_parameter():
    network = awake()
    network(*batch(16)).square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_images_see_the_past_and_not_the_future():
    network = awake()
    x, t, label = batch()
    changed = x.clone()
    changed[:, 2] += 1
    before, after = network(x, t, label), network(changed, t, label)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-4


def test_single_images_are_first_images():
    network = awake()
    x, t, label = batch()
    torch.testing.assert_close(network(x[:, 0], t[:, 0], label), network(x, t, label)[:, 0])


def test_steps_equal_the_sequence():
    network = awake()
    x, t, label = batch()
    expected, states = network(x, t, label), None
    for image in range(4):
        out, states = network.step(x[:, image], t[:, image], label, states)
        torch.testing.assert_close(out, expected[:, image])


def test_labels_within_a_sequence_part_it():
    network = awake()
    x, t, _ = batch(1)
    mixed = network(x, t, torch.tensor([[1, 1, 2, 2]]))
    torch.testing.assert_close(mixed[:, 2:], network(x[:, 2:], t[:, 2:], torch.tensor([2])))


def test_activation_checkpointing_gives_identical_gradients():
    gradients = []
    for recompute in (False, True):
        network = awake()
        network.activation_checkpointing = recompute
        network(*batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


@pytest.mark.parametrize("images", [1, 4])
def test_compiled_equals_eager_without_graph_breaks(images):
    network = awake()
    inputs = batch(images=images)
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


SPEC = LatentSpec(kind="continuous", channels=4, grid=(32, 32), image_size=256)
PUBLISHED = {  # millions, with learn_sigma and without the frozen positions
    "ARFlow-S/2": 34.64, "ARFlow-B/2": 137.47, "ARFlow-L/2": 483.30,
    "ARFlow-XL/2": 712.45, "ARFlow-XL/4": 712.61, "ARFlow-XL/8": 713.28,
}  # fmt: skip


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_the_published_size_and_are_known_by_their_shapes(preset):
    with torch.device("meta"):
        network = ARFlowConfig(preset=preset, learn_sigma=True).build(SPEC, num_classes=1000)
        arguments = arflow.arflow_arguments(arflow.save(network))
    if preset in PUBLISHED:
        millions = sum(value.numel() for value in network.parameters()) / 1e6
        assert millions == pytest.approx(PUBLISHED[preset], rel=1e-3)
    assert arflow.preset_of(arguments) == preset


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_official_weights_there_and_back(learn_sigma):
    network = awake(grid=(4, 4), learn_sigma=learn_sigma)
    state = arflow.save(network)
    assert state["blocks.1.attn.gt_proj.weight"].shape == (2, 16)
    x, t, label = torch.randn(2, 3, 3, 4, 4), torch.rand(2, 3), torch.tensor([0, 5])
    twin = arflow.load(ARFlow(**{**arflow.arflow_arguments(state), "learn_sigma": learn_sigma}), state)
    assert torch.equal(twin(x, t, label), network(x, t, label))
    slim = arflow.load(ARFlow(**arflow.arflow_arguments(state)), state)
    torch.testing.assert_close(slim(x, t, label), network(x, t, label)[:, :, :3])


def test_averaged_weights_come_first():
    assert arflow.weights({"model": {"a": 1}, "ema": {"a": 2}, "opt": {}}) == ({"a": 2}, "ema")
    assert arflow.weights({"model": {"a": 1}}) == ({"a": 1}, "model")
    assert arflow.weights({"a": 1}) == ({"a": 1}, "flat")


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="no ARFlow checkpoint"):
        arflow.arflow_arguments({"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"q_proj.weight.* is missing"):
        arflow.load(ARFlow(**TINY), {"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="does not fit"):
        arflow.load(ARFlow(**TINY), arflow.save(awake(width=32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, "must divide the latent grid: got patch 2 for a grid of 4 x 5"),
        ({"heads": 3}, "divisible by heads: got width 16, heads 3"),
        ({"width": 18}, "divisible by 4"),
        ({"num_classes": 0, "null_row": False}, "null row"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        ARFlow(**{**TINY, **change})


def test_config_refuses_what_cannot_be_built():
    with pytest.raises(ValidationError, match="divisible by heads"):
        ARFlowConfig(width=100, heads=3)
    with pytest.raises(ConfigError, match="continuous"):
        ARFlowConfig().build(LatentSpec("codes", 8, (16, 16), 256, vocab=16), 10)
    with pytest.raises(ConfigError, match="no null label"):
        _ = ARFlow(**TINY, null_row=False).null_label
