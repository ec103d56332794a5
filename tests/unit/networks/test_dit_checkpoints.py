"""Official files of DiT and diffusers' folders, in and out."""

import argparse

import pytest
import torch
from diffusers import DiTTransformer2DModel

from genlab.convert import dit, sit
from genlab.core.errors import CheckpointError
from genlab.networks.dit import DiT, DiTConfig

SIZES = {"grid": (8, 8), "channels": 4, "width": 16, "depth": 2, "heads": 2, "num_classes": 5, "learn_sigma": True}


def awake(**changes) -> DiT:
    torch.manual_seed(0)
    network = DiT(**{**SIZES, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0.0, 300.0, 999.0]), torch.tensor([0, 4, 5])


def same(network: DiT, other: DiT) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flat_file_is_read(tmp_path, suffix):
    network = awake()
    path = tmp_path / f"DiT{suffix}"
    if suffix == ".pt":
        torch.save(network.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    loaded = dit.load(path, heads=2)
    assert (loaded.weights, loaded.preset) == ("unnamed", None)
    assert same(loaded.network, network)


def test_a_trainers_checkpoint_gives_the_average_or_the_raw_weights(tmp_path):
    raw, average = awake(), awake(learn_sigma=False)
    wrapped = {f"module.{key}": value for key, value in raw.state_dict().items()}
    path = tmp_path / "0050000.pt"
    trainer = {"model": wrapped, "ema": average.state_dict(), "opt": {}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(trainer, path)
    assert dit.load(path, heads=2).weights == "ema"
    assert same(dit.load(path, heads=2).network, average)
    assert dit.load(path, "raw", heads=2).weights == "raw"
    assert same(dit.load(path, "raw", heads=2).network, raw)
    torch.save({"model": wrapped}, path)
    with pytest.raises(CheckpointError, match="no ema weights, only model"):
        dit.load(path)


@torch.no_grad()
def test_a_network_of_repa_turns_its_time(tmp_path):
    network = awake(learn_sigma=False)
    path = tmp_path / "last.pt"
    torch.save({**network.state_dict(), "projectors.0.0.weight": torch.zeros(3, 3)}, path)
    x, _, label = batch()
    t = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(dit.load(path, heads=2).network(x, t, label), -network(x, 1 - t, label))


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys):
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match="cannot be read"):
        dit.load(path)
    torch.save({"ema": Malicious()}, path)
    with pytest.raises(CheckpointError, match="neither a state dict"):
        dit.load(path)
    assert "executed" not in capsys.readouterr().out
    torch.save(awake().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="truncated"):
        dit.load(path)
    torch.save({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no DiT"):
        dit.load(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(CheckpointError, match="neither a state dict"):
        dit.load(path)


OPTIONS = [
    {},
    {"rms_norm": True, "swiglu": True},
    {"swiglu": True, "mlp_ratio": 3.0, "shift": False},
    {"qk_norm": "rms", "rms_norm": True},
    {"qk_norm": "layer", "patch": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_are_read_from_the_weights(options):
    network = awake(**options)
    heads = None if "qk_norm" in options else 2
    twin = sit.load(DiT(**sit.dit_arguments(network.state_dict(), heads)), network.state_dict())
    assert torch.equal(twin(*batch()), network(*batch()))


@pytest.mark.parametrize("preset", ["DiT-XL/2", "DiT-S/8", "LightningDiT-XL/1"])
def test_presets_are_recognised(preset):
    from genlab.core.contracts import LatentSpec

    config = DiTConfig(preset=preset)
    with torch.device("meta"):
        state = config.build(LatentSpec("continuous", 4, (32, 32), 256), 1000).state_dict()
    if config.rope:  # the official files carry the tables
        state["feat_rope.freqs_cos"] = torch.empty(1)
    assert dit.preset_of(sit.dit_arguments(state)) == preset


def test_diffusers_folders_go_out_and_come_back(tmp_path):
    network = awake()
    dit.save_diffusers(network, tmp_path / "transformer")
    assert same(dit.load_diffusers(tmp_path).network, network)
    assert same(dit.load_diffusers(tmp_path / "transformer").network, network)
    renamed = dit.to_diffusers(network.state_dict())
    back = dit.to_diffusers(dit.from_diffusers(renamed, side=4))
    assert renamed.keys() == back.keys()
    assert all(torch.equal(renamed[key], back[key]) for key in back)


def test_diffusers_own_network_agrees_but_for_its_two_departures(tmp_path):
    network = awake()
    dit.save_diffusers(network, tmp_path / "transformer")
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    x, t, label = batch()

    def error() -> float:
        expected = network(x, t, label)
        out = theirs(x, timestep=t, class_labels=label).sample
        return ((out - expected).abs().max() / expected.abs().max()).item()

    with torch.no_grad():
        assert error() > 1e-2
        for block in theirs.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
            block.norm3.eps = 1e-6
        assert error() < 1e-5


@pytest.mark.parametrize("change", [{"rope": True}, {"qk_norm": "rms"}, {"grid": (8, 4)}, {"null_row": False}], ids=str)
def test_what_diffusers_cannot_hold_is_refused(change, tmp_path):
    with pytest.raises(CheckpointError, match="diffusers' DiT has square latents"):
        dit.save_diffusers(awake(**change), tmp_path / "transformer")


def test_foreign_diffusers_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        dit.load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "sample_size": 8, "patch_size": 2}')
    with pytest.raises(CheckpointError, match="has no diffusion_pytorch_model"):
        dit.load_diffusers(tmp_path)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no parameters of transformer_blocks"):
        dit.load_diffusers(tmp_path)
