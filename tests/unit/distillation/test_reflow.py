import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab.core.contracts import Batch, Network
from genlab.core.errors import ConfigError, DataError
from genlab.core.generator import Generator
from genlab.distillation import pairs
from genlab.distillation.pairs import Pairs
from genlab.distillation.reflow import Reflow, time_density, times, velocities, velocity_distance
from genlab.distillation.settings import Parts
from genlab.processes.edm import Edm
from genlab.processes.flow import Flow
from genlab.processes.flow_sampling import FlowSampling
from genlab.tokenization.pixels import Pixels
from genlab.training.objective import Role
from genlab.training.settings import TrainingSettings
from samplers.noise import spawn


class Straight(Network):
    """A flow along straight lines: noise z goes to gain z + class."""

    num_classes = 10

    def __init__(self, gain=0.5):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x, t, label):
        t, shift = t[:, None, None, None], 0.1 * label[:, None, None, None]
        z = (x - t * shift) / (1 - t + t * self.gain)
        return (self.gain - 1) * z + shift


def teacher(gain=0.5):
    return Generator(Pixels(channels=1).build(8), Straight(gain), Flow(), FlowSampling())


EULER = FlowSampling(sampler="euler", steps=4)


def test_times_have_the_density_that_is_high_at_both_ends():
    rng = spawn(0, range(40_000))
    t = times(rng.uniform(), rng.uniform() < 0.5, 4.0)
    share = torch.histc(t, bins=10, min=0, max=1) / len(t)
    middles = (torch.arange(10) + 0.5) / 10
    torch.testing.assert_close(share, time_density(middles, 4.0) / 10, rtol=0.06, atol=0)
    assert t.min() > 0
    assert t.max() < 1


@given(a=st.floats(0.5, 10.0))
def test_the_density_is_normalised(a):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert torch.trapezoid(time_density(t, a), t) == pytest.approx(1, rel=1e-4)


def test_pairs_are_the_ends_of_the_teachers_paths_and_made_once(tmp_path, monkeypatch):
    file = tmp_path / "new" / "pairs.safetensors"
    made = Pairs.of(file, teacher(), EULER, 25, seed=3)
    stamp = file.stat().st_mtime_ns
    monkeypatch.setattr(pairs, "_BATCH", 7)
    again = pairs.make(teacher(), EULER, 25, seed=3)
    torch.testing.assert_close(again.data, made.data, rtol=0, atol=2e-3)
    found = Pairs.of(file, teacher(), EULER, 25, seed=3)
    assert file.stat().st_mtime_ns == stamp
    data, noise, label = found.rows(torch.tensor([4, 20]))
    assert label.tolist() == [4, 0]
    torch.testing.assert_close(data, 0.5 * noise + 0.1 * label[:, None, None, None], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"count": 24}, "count"), ({"seed": 4}, "seed"), ({"sampling": FlowSampling(steps=3)}, "sampler")],
)
def test_pairs_of_another_recipe_are_refused(tmp_path, change, word):
    file = tmp_path / "pairs.safetensors"
    asked = {"sampling": EULER, "count": 25, "seed": 3}
    Pairs.of(file, teacher(), **asked)
    with pytest.raises(DataError, match=word):
        Pairs.of(file, teacher(), **asked | change)
    with pytest.raises(DataError, match="weights"):
        Pairs.of(file, teacher(0.6), **asked)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="delete it"):
        Pairs.of(file, teacher(), **asked)


@pytest.mark.parametrize("metric", ["square", "norm", "huber"])
def test_straight_lines_cost_nothing(metric):
    noise, label = spawn(0, range(6)).normal(1, 8, 8), torch.arange(6)
    data = 0.5 * noise + 0.1 * label[:, None, None, None]
    t = spawn(1, range(6)).uniform()
    assert velocity_distance(metric, *velocities(Flow(), Straight(), data, noise, t, label)).max() < 1e-4
    wrong = velocity_distance(metric, *velocities(Flow(), Straight(0.8), data, noise, t, label))
    assert wrong.min() > 1e-3
    assert wrong.shape == (6,)


def test_a_student_learns_from_pairs_and_not_from_the_data(tmp_path):
    settings = Reflow(teacher="t", file=str(tmp_path / "pairs.safetensors"), pairs=50, sampler="euler", steps=2)
    student, rows = teacher(0.9), list(range(8))
    objective = settings.objective(
        student, teacher(), Role(student.network), TrainingSettings(images=64, batch=8, label_dropout=0.0), 0
    )
    (turn,) = objective.turns(0)
    blank = Batch(torch.zeros(8, dtype=torch.int64), torch.arange(8), torch.zeros(8, 3, 8, 8, dtype=torch.uint8))
    optimizer = torch.optim.Adam(student.network.parameters(), lr=0.1)
    for update in range(30):
        optimizer.zero_grad()
        turn.loss({"network": student.network}, blank, spawn(update, rows))["loss"].mean().backward()
        optimizer.step()
    assert student.network.gain.item() == pytest.approx(0.5, abs=0.03)


def test_reflow_is_for_flows():
    settings, flow = Reflow(teacher="t", file="f", init="fresh"), Parts.of(teacher())
    settings.check(flow, flow)
    with pytest.raises(ConfigError, match="choose process flow"):
        settings.check(flow, flow._replace(process=Edm()))
