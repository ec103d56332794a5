"""The target of consistency training: an average of its own, whose decay rises with the curriculum."""

import itertools
import math

import pytest
import torch
from accelerate import Accelerator

from genlab.core.contracts import Batch
from genlab.core.generator import Generator
from genlab.networks.dit import DiT
from genlab.processes.consistency import ConsistencyConfig
from genlab.tokenization.pixels import Pixels
from genlab.training.generation import GenerationObjective
from genlab.training.loop import Hooks, Loop
from genlab.training.settings import TrainingSettings

START, END, UPDATES, FIRST = 2, 20, 6, 0.8


def loop(folder, target, images=UPDATES * 4, ema=(0.999,)):
    torch.manual_seed(0)
    curriculum = {"name": "ct", "target": target, "first_decay": FIRST, "steps": UPDATES}
    config = ConsistencyConfig(curriculum=curriculum | {"intervals_start": START, "intervals_end": END})
    network = DiT((8, 8), 1, patch=4, width=16, depth=1, heads=2, num_classes=10)
    generator = Generator(Pixels(channels=1).build(8), network, config.build(), config.Sampling())
    settings = TrainingSettings(images=images, batch=4, lr=1e-2, ema=ema, trackers=(), checkpoint_every=images)
    objective = GenerationObjective(generator, settings.role(network), 0.0)
    return Loop(objective, batches, settings, 0, folder, Accelerator(cpu=True), {}, Hooks())


def batches(start, micro):
    for first in itertools.count(start, micro):
        position = torch.arange(first, first + micro)
        images = (position[:, None, None, None] * 37 % 256).expand(-1, 3, 8, 8).to(torch.uint8)
        yield Batch(label=position % 10, position=position, images=images)


def weight(network):
    return network.get_parameter("x_embedder.proj.weight").detach().double()


def test_the_target_follows_the_formula(tmp_path):
    made = loop(tmp_path, "adaptive")
    member, feed = made.members["network"], batches(0, made.micro)
    expected = weight(member.bare).clone()
    for k in range(UPDATES):
        made.step(feed)
        steps = math.ceil(math.sqrt(k / UPDATES * ((END + 1) ** 2 - START**2) + START**2) - 1)
        mu = math.exp(START * math.log(FIRST) / max(steps, 1))
        expected = mu * expected + (1 - mu) * weight(member.bare)
        torch.testing.assert_close(weight(member.average), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weight(member.average), member.emas[0].state["x_embedder.proj.weight"].double())


@pytest.mark.parametrize("ema", [(0.999,), ()])
def test_it_is_saved_but_not_sampled_from(ema, tmp_path):
    made = loop(tmp_path, "adaptive", ema=ema)
    made.run()
    saved = weight(made.members["network"].average).clone()
    again = loop(tmp_path, "adaptive", images=UPDATES * 8, ema=ema)
    again.restore(tmp_path / "checkpoints" / f"{UPDATES * 4:09d}")
    member = again.members["network"]
    assert torch.equal(weight(member.average), saved) and member.kept[0].updates == UPDATES
    sampled = weight(member.bare) if not ema else member.emas[0].state["x_embedder.proj.weight"].double()
    with again.averaged():
        assert torch.equal(weight(member.bare), sampled)


def test_a_fixed_target_is_the_first_average_of_the_run(tmp_path):
    member = loop(tmp_path, "fixed").members["network"]
    assert member.kept == member.emas
    assert member.average.x_embedder.proj.weight.data_ptr() == member.emas[0].state["x_embedder.proj.weight"].data_ptr()
