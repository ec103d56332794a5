"""The loop: roles, turns, accumulation, and stopping before a weight is spoilt."""

import itertools

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from genlab.core.contracts import Batch
from genlab.core.errors import CheckpointError, ConfigError, NonFinite
from genlab.training import checkpoint
from genlab.training.loop import Hooks, Loop
from genlab.training.objective import Objective, Role, Turn
from genlab.training.optimizers import AdamW
from genlab.training.settings import TrainingSettings

SETTINGS = TrainingSettings(images=64, batch=8, ema=(0.5,), checkpoint_every=16, trackers=())


def feed(start, micro):
    """Batches whose images hold their own position."""
    for first in itertools.count(start, micro):
        position = torch.arange(first, first + micro)
        yield Batch(label=position % 2, position=position, extra={"x": position[:, None] / 64.0})


class Pair(Objective):
    """A student that fits its critic's output and a critic that fits the data; as in adversarial training."""

    def __init__(self, break_at=None):
        torch.manual_seed(0)
        self.student, self.critic, self.fixed = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        self.break_at, self.seen = break_at, []

    def roles(self):
        update = {"optimizer": AdamW(), "lr": 1e-2, "ema": (0.5,)}
        return {
            "student": Role(self.student, **update),
            "critic": Role(self.critic, **update),
            "fixed": Role(self.fixed),
        }

    def turns(self, step):
        self.seen.append(step)
        turns = [Turn("critic", self.critic_loss)]
        return [*turns, Turn("student", self.student_loss)] if step % 2 else turns

    def critic_loss(self, nets, batch, rng):
        assert not any(p.requires_grad for p in self.student.parameters())
        error = nets["critic"](batch.extra["x"]) - 2 * batch.extra["x"]
        return {"loss": error.square().flatten(), "extra": error.flatten() * 0 + rng.uniform()}

    def student_loss(self, nets, batch, rng):
        loss = (nets["critic"](nets["student"](batch.extra["x"])) - nets["fixed"](batch.extra["x"])).square().flatten()
        if self.break_at is not None and batch.position[0] >= self.break_at:
            loss = loss * float("nan")
        return {"loss": loss}

    def preview(self, share):
        return None


def make(folder, objective=None, settings=SETTINGS, identity=None, hooks=Hooks()):  # noqa: B008 (frozen)
    accelerator = Accelerator(cpu=True)
    return Loop(objective or Pair(), feed, settings, 0, folder, accelerator, identity or {"a": 1}, hooks)


def state(loop):
    tensors = {stem: group for member in loop.members.values() for stem, group in member.tensors()}
    return {f"{stem}/{name}": value.clone() for stem, group in tensors.items() for name, value in group.items()}


def test_only_the_role_of_a_turn_changes(tmp_path):
    loop = make(tmp_path)
    before = state(loop)
    loop.step(feed(0, loop.micro))  # step 0: the critic alone
    after = state(loop)
    assert torch.equal(before["student/weight"], after["student/weight"])
    assert not torch.equal(before["critic/weight"], after["critic/weight"])
    assert all(p.grad is None for member in loop.members.values() for p in member.parameters)
    assert all(p.requires_grad for member in loop.members.values() for p in member.parameters)
    assert not any(p.requires_grad for p in loop.objective.fixed.parameters())


def test_a_non_finite_loss_stops_before_the_update_and_keeps_the_last_checkpoint(tmp_path):
    loop = make(tmp_path, Pair(break_at=24))
    with pytest.raises(NonFinite, match="'loss' of 'student' is nan at step 3"):
        loop.run()
    assert all(value.isfinite().all() for value in state(loop).values())
    newest, problems = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "000000016" and not problems


def test_a_non_finite_gradient_stops_too(tmp_path):
    class Steep(Pair):
        def critic_loss(self, nets, batch, rng):
            return {"loss": nets["critic"](batch.extra["x"]).abs().flatten().add(1e-45).sub(1e-45).mul(0).sqrt()}

    with pytest.raises(NonFinite, match="gradient norm of 'critic'"):
        make(tmp_path, Steep()).run()


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_gives_the_same_weights(tmp_path, micro):
    whole = make(tmp_path / "a")
    parts = make(tmp_path / "b", settings=SETTINGS.model_copy(update={"micro_batch": micro}))
    assert parts.accumulation == 8 // micro
    whole.run(), parts.run()
    expected = state(whole)
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in state(parts).items())


def test_a_restored_loop_continues_exactly(tmp_path):
    straight = make(tmp_path / "straight")
    straight.run()
    half = make(tmp_path / "half", settings=SETTINGS.model_copy(update={"images": 32}))
    half.run()
    resumed = make(tmp_path / "half")
    resumed.restore(tmp_path / "half" / "checkpoints" / "000000032")
    resumed.run()
    expected = state(straight)
    assert all(torch.equal(value, expected[name]) for name, value in state(resumed).items())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    make(tmp_path).run()
    with pytest.raises(CheckpointError, match="a was 1, is 2"):
        make(tmp_path, identity={"a": 2}).restore(tmp_path / "checkpoints" / "000000064")


def test_hooks_see_the_averages_and_leave_the_weights(tmp_path):
    objective, seen = Pair(), []
    hooks = Hooks(
        preview=lambda images: seen.append((images, objective.critic.weight.item(), objective.critic.training)),
        evaluate=lambda images: {"score": 1.0},
        evaluate_every=32,
    )
    loop = make(tmp_path, objective, SETTINGS.model_copy(update={"preview_every": 64}), hooks=hooks)
    loop.run()
    ((images, weight, training),) = seen
    assert images == 64 and not training
    assert weight == loop.members["critic"].emas[0].state["weight"].item()
    assert weight != objective.critic.weight.item()
    assert (tmp_path / "log.jsonl").read_text().count('"score": 1.0') == 2


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="micro_batch=8 does not divide"):
        make(tmp_path, settings=SETTINGS.model_copy(update={"batch": 12, "micro_batch": 8}))


def test_gradients_are_clipped_by_value_and_the_norm_is_told_before(tmp_path):
    class Steep(Pair):
        def critic_loss(self, nets, batch, rng):
            return {"loss": 100 * nets["critic"](batch.extra["x"] + 1).flatten()}

        def roles(self):
            return {**super().roles(), "critic": Role(self.critic, AdamW(), lr=1e-2, clip_value=3.0)}

    loop = make(tmp_path, Steep())
    member, seen = loop.members["critic"], []
    step = member.prepared.step
    member.prepared.step = lambda: (seen.extend(p.grad.item() for p in member.parameters), step())
    values, _ = loop.step(feed(0, loop.micro))
    assert seen == [3.0, 3.0] and values["critic/grad_norm"] > 100


def test_the_weight_decay_of_matrices_alone_follows_its_schedule(tmp_path):
    class Decaying(Pair):
        def roles(self):
            optimizer = AdamW(weight_decay=0.05, weight_decay_end=0.08)
            return {**super().roles(), "critic": Role(self.critic, optimizer, lr=1e-2)}

    loop = make(tmp_path, Decaying())
    batches, seen = feed(0, loop.micro), []
    for _ in range(8):
        loop.step(batches)
        seen.append([group["weight_decay"] for group in loop.members["critic"].optimizer.param_groups])
    assert [exempt for _, exempt in seen] == [0.0] * 8
    decays = [decay for decay, _ in seen]
    assert decays == sorted(decays) and (decays[0], decays[-1]) == pytest.approx((0.05, 0.08))
