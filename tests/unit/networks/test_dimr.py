import pytest
import torch
from pydantic import ValidationError

from genlab.convert import dimr
from genlab.core.contracts import LatentSpec
from genlab.core.errors import CheckpointError, ConfigError
from genlab.networks.dimr import PRESETS, DiMR, DiMRConfig

COARSE = {"block": "transformer", "width": 16, "depth": 3, "patch": 2, "heads": 2}
FINE = {"block": "convnext", "width": 8, "depth": 3, "kernel": 3}
TINY = {"grid": (4, 6), "channels": 3, "stages": [COARSE, FINE], "num_classes": 5}


def awake(**changes) -> DiMR:
    """A tiny DiMR whose norms depend on time."""
    torch.manual_seed(0)
    network = DiMR(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch(size: int = 3, grid: tuple[int, int] = (4, 6)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, *grid, generator=generator)
    return x, 1000 * torch.rand(size, generator=generator), torch.randint(0, 6, (size,), generator=generator)


def test_every_resolution_ends_in_the_plain_prediction():
    network = awake()
    coarse, fine = network(*batch(), every_resolution=True)
    assert coarse.shape == (3, 3, 2, 3)
    assert torch.equal(fine, network(*batch()))


@pytest.mark.parametrize("norm", ["td_rms", "td_layer", "rms", "first_rms"])
def test_gradients_reach_every_parameter(norm):
    network = awake(norm=norm)
    sum(out.square().sum() for out in network(*batch(16), every_resolution=True)).backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_blocked_gradients_stop_at_the_stage():
    network = awake(block_gradients=True)
    network(*batch(), every_resolution=True)[-1].sum().backward()
    coarse, fine = network.stages
    assert all(parameter.grad is None for parameter in coarse.parameters())
    assert fine.upsample.project.linear.weight.grad.abs().sum() > 0


def test_three_stages_and_rotary_positions_without_classes():
    stages = [{**COARSE, "patch": 4}, {**FINE, "patch": 2}, FINE]
    network = awake(grid=(8, 8), stages=stages, num_classes=0, rope=True)
    assert network.stages[0].positions is None
    outputs = network(*batch(grid=(8, 8)), every_resolution=True)
    assert [out.shape[-1] for out in outputs] == [2, 4, 8]


def test_samples_do_not_see_each_other():
    network = awake().eval()
    x, t, label = batch()
    torch.testing.assert_close(network(x, t, label)[1:2], network(x[1:2], t[1:2], label[1:2]))


def test_smaller_latents_use_the_top_left_of_the_positions():
    network = awake()
    with torch.no_grad():
        network.stages[1].positions.weight.view(4, 6, -1)[:, 4:] += 100
    x, t, label = batch(grid=(4, 4))
    assert network(x, t, label).abs().max() < 50


def test_activation_checkpointing_gives_identical_gradients_and_recomputes_every_block():
    gradients, calls = [], []
    for recompute in (False, True):
        network = awake()
        for stage in network.stages:
            for block in stage.blocks:
                block.register_forward_pre_hook(lambda *_, recompute=recompute: calls.append(recompute))
        network.activation_checkpointing = recompute
        network(*batch()).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))
    assert calls.count(True) == 2 * calls.count(False) == 12


@pytest.mark.parametrize("every_resolution", [False, True])
def test_compiles_as_one_graph(every_resolution):
    network = awake()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(*batch(), every_resolution=every_resolution), network(*batch(), every_resolution=every_resolution)
    )


@pytest.mark.parametrize("norm", ["td_rms", "td_layer", "rms", "first_rms"])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_stays_near_float32_and_returns_the_input_dtype(how, norm):
    inputs = batch()
    expected = awake(norm=norm)(*inputs)
    if how == "weights":
        got = awake(norm=norm).bfloat16()(*inputs)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = awake(norm=norm)(*inputs)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_time_range_is_the_unit_of_time():
    x, t, label = batch()
    flow = awake(time_range=(1.0, 0.0))
    torch.testing.assert_close(flow(x, 1 - t / 1000, label), awake()(x, t, label))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, "must divide the latent grid: got 2 for a grid of 4 x 5"),
        ({"stages": [{**COARSE, "depth": 2}, FINE]}, "depth must be odd: got 2; try 3"),
        ({"stages": [{**COARSE, "heads": 3}, FINE]}, "divisible by heads: got width 16, heads 3"),
        ({"stages": [COARSE, {**FINE, "kernel": 4}]}, "must be odd"),
        ({"stages": [FINE, COARSE]}, "multiple of the one before: got 4 x 6, then 2 x 3"),
        ({"rope": True}, "no place for a class token: got 5 classes"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        DiMR(**{**TINY, **change})


@pytest.mark.parametrize("grid", [(8, 6), (4, 5)])
def test_latents_that_do_not_fit(grid):
    with pytest.raises(ConfigError, match="takes latents of up to 4 x 6, in multiples of 2"):
        awake()(*batch(grid=grid))


PUBLISHED = {"DiMR-XL/2R": 505_046_408, "DiMR-G/2R": 1_056_352_904, "DiMR-XL/3R": 525_027_372}


def spec(preset: str) -> LatentSpec:
    side = 64 if preset.endswith("3R") else 32
    return LatentSpec(kind="continuous", channels=4, grid=(side, side), image_size=8 * side)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_the_published_size_and_are_known_by_their_shapes(preset):
    with torch.device("meta"):
        network = DiMRConfig(preset=preset).build(spec(preset), num_classes=1000)
    assert sum(value.numel() for value in network.state_dict().values()) == PUBLISHED[preset]
    official = dimr.to_official(network, network.state_dict())
    assert dimr.preset_of(official) == preset
    arguments = dimr.dimr_arguments(official)
    assert (arguments["stages"][0]["heads"], arguments["num_classes"], arguments["grid"]) == (
        16,
        1000,
        spec(preset).grid,
    )


def test_config_completes_a_preset_and_survives_a_round_trip():
    config = DiMRConfig(preset="DiMR-XL/2R")
    assert [stage.width for stage in config.stages] == [960, 480]
    assert DiMRConfig(**config.model_dump()) == config
    assert DiMRConfig.model_validate_json(config.model_dump_json(), strict=True) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, "stages are missing"),
        ({"stages": [COARSE]}, "the last of stages must have patch 1"),
        ({"stages": [{**COARSE, "depth": 4}, FINE]}, "depth must be odd"),
        ({"stages": [COARSE, FINE], "time_range": (1, 1)}, "two different times"),
        ({"preset": "DiMR-S/2R"}, "DiMR-XL/2R"),
    ],
)
def test_config_refuses_what_cannot_be_built(change, message):
    with pytest.raises(ValidationError, match=message):
        DiMRConfig(**change)


@pytest.mark.parametrize("norm", ["td_rms", "td_layer", "rms", "first_rms"])
def test_official_names_there_and_back(norm):
    network = awake(grid=(4, 4), norm=norm)
    official = dimr.to_official(network, network.state_dict())
    assert "stages.1.upsample.0.weight.nodecay_bias" in official
    arguments = dimr.dimr_arguments(official, heads=2)
    twin = dimr.load(DiMR(**arguments), official)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in network.state_dict().items())


def test_foreign_checkpoints_are_refused():
    network = awake(grid=(4, 4))
    official = dimr.to_official(network, network.state_dict())
    with pytest.raises(CheckpointError, match="no DiMR checkpoint"):
        dimr.dimr_arguments({"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="give --heads"):
        dimr.dimr_arguments(official)
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        dimr.load(network, {key: value for key, value in official.items() if key != "stages.0.output_layer.2.bias"})
    with pytest.raises(CheckpointError, match="does not fit"):
        dimr.load(awake(), official)


def test_one_resolution_alone_gives_every_parameter_a_gradient():
    network = awake()
    out = network(*batch())
    with torch.no_grad():
        assert torch.equal(out, network(*batch()))
    out.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(not p.grad.any() for p in network.stages[0].head.parameters())


def test_stages_that_learn_by_themselves_refuse_one_resolution_alone():
    network = awake(block_gradients=True)
    with pytest.raises(ConfigError, match=r"set it to false, or take process vp with resolutions=2"):
        network(*batch())
    assert network.eval()(*batch()).shape == (3, 3, 4, 6)
