"""Power-function averages in training: what they are, their snapshots, and the averages made of these afterwards."""

import itertools
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from genlab.commands.export import export
from genlab.commands.train import train
from genlab.core.contracts import Batch
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.weights import read_header
from genlab.pretrained import from_pretrained
from genlab.training import power_ema, snapshots
from genlab.training.ema import PowerEma
from genlab.training.loop import Hooks, Loop
from genlab.training.objective import Objective, Turn
from genlab.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    images=400,
    batch=4,
    lr=0.05,
    ema=(),
    ema_power=(0.05, 0.1, 0.07),
    snapshot_every=40,
    checkpoint_every=80,
    trackers=(),
)
RECIPE = """
data: {name: digits}
network: {name: dit, depth: 1, width: 32, heads: 2, patch: 2}
process: {name: flow}
sampling: {steps: 2}
training: {images: 640, batch: 32, ema: [], ema_power: [0.1, 0.05], snapshot_every: 64, trackers: [], preview_count: 4}
"""


class Chase(Objective):
    """A vector that chases a moving target, beside a buffer."""

    def __init__(self, settings):
        torch.manual_seed(0)
        self.settings, self.network = settings, nn.BatchNorm1d(8)

    def roles(self):
        return {"network": self.settings.role(self.network)}

    def turns(self, step):
        return [Turn("network", self.loss)]

    def loss(self, networks, batch, rng):
        target = torch.sin(batch.position[:, None] / 60.0 + torch.arange(8))
        return {"loss": (networks["network"](rng.normal(8)) - target).square().mean(1)}

    def preview(self, share):
        return None


def feed(start, micro):
    for first in itertools.count(start, micro):
        position = torch.arange(first, first + micro)
        yield Batch(label=position % 2, position=position)


def make(folder: Path, settings=SETTINGS):
    return Loop(Chase(settings), feed, settings, 0, folder, Accelerator(cpu=True), {}, Hooks())


def files(folder: Path):
    found = sorted((folder / "averages").rglob("*.safetensors"))
    return {str(file.relative_to(folder)): (read_header(file), load_file(file)) for file in found}


def test_the_average_follows_its_definition():
    network = nn.Linear(3, 2)
    ema, expected = PowerEma(network, 0.1), torch.zeros(2, 3, dtype=torch.float64)
    for update in range(1, 30):
        nn.init.normal_(network.weight)
        ema.update()
        keep = power_ema.decay(0.1, update * 256, 256)
        expected = keep * expected + (1 - keep) * network.weight.detach().double()
    torch.testing.assert_close(ema.state["weight"].double(), expected, atol=1e-6, rtol=0)


def test_any_width_is_made_of_the_snapshots_of_two(tmp_path):
    loop = make(tmp_path)
    loop.run()
    tracked = {name: value.clone() for name, value in loop.members["network"].emas[2].state.items()}
    for file in (tmp_path / "averages").rglob("*.power-0.07.safetensors"):
        file.unlink()
    made, images = snapshots.reconstruct(tmp_path / "averages", "network", 0.07)
    assert images == 400 and [path.name for path in sorted((tmp_path / "averages").iterdir())][:2] == [
        "000000040",
        "000000080",
    ]
    for name in ("weight", "bias"):
        assert made[name].dtype == torch.float32
        error = (made[name] - tracked[name]).abs().max()
        assert error < 3e-3
        others = [
            load_file(tmp_path / f"averages/000000400/network.power-{std}.safetensors") for std in ("0.05", "0.1")
        ]
        assert all((other[name].float() - tracked[name]).abs().max() > 3 * error for other in others)
    assert torch.equal(made["running_mean"], loop.objective.network.running_mean)  # a buffer, not rounded


def test_a_restored_run_takes_the_same_snapshots(tmp_path):
    make(tmp_path / "straight").run()
    half = SETTINGS.model_copy(update={"images": 160})
    make(tmp_path / "half", half).run()
    resumed = make(tmp_path / "half")
    resumed.restore(tmp_path / "half" / "checkpoints" / "000000160")
    resumed.run()
    again, straight = files(tmp_path / "half"), files(tmp_path / "straight")
    assert again.keys() == straight.keys() and len(straight) == 30
    for file, (header, tensors) in straight.items():
        assert again[file][0] == header
        assert all(torch.equal(value, again[file][1][name]) for name, value in tensors.items())


def test_the_first_of_the_averages_is_the_one_to_use():
    assert SETTINGS.average == "power-0.05"
    assert SETTINGS.model_copy(update={"ema": (0.99,)}).average == 0.99
    assert SETTINGS.model_copy(update={"ema_power": ()}).average is None


def test_a_run_is_exported_with_its_own_average_and_with_another(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    run = train(recipe, ["name=tiny"], tmp_path)
    saved = load_file(run / "checkpoints/000000640/network.power-0.1.safetensors")
    own = from_pretrained(run).network.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in own.items())
    export(run, 0.08)
    generator = from_pretrained(run)
    assert '"ema": "power-0.08"' in (run / "export/config.json").read_text()
    between = [load_file(run / f"checkpoints/000000640/network.power-{std}.safetensors") for std in ("0.05", "0.1")]
    name = "blocks.0.attn.qkv.weight"
    distances = [(generator.network.state_dict()[name] - average[name]).norm() for average in between]
    assert all(0 < distance < (between[0][name] - between[1][name]).norm() for distance in distances)
    export(run)  # and back to its own
    assert torch.equal(from_pretrained(run).network.state_dict()[name], saved[name])


def test_what_cannot_be_made_is_named(tmp_path):
    (tmp_path / "generator.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"below 0\.288, got 0\.5"):
        export(tmp_path, 0.5)
    with pytest.raises(CheckpointError, match=r"no snapshots .* training\.ema_power"):
        snapshots.reconstruct(tmp_path / "averages", "network", 0.1)
    folder = tmp_path / "averages" / "000000004"
    folder.mkdir(parents=True)
    (folder / "network.power-0.1.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="damaged"):
        snapshots.reconstruct(tmp_path / "averages", "network", 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema_power": (0.05, 0.05)}, "names a width twice"),
        ({"ema_power": (0.3,)}, "less than 0.288"),
        ({"ema_power": ()}, "snapshot_every is for ema_power"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**(SETTINGS.model_dump() | change))
