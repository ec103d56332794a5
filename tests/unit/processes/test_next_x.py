from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError, GenlabError, NonFinite
from genlab.networks.dit import DiT
from genlab.networks.xar import XAR
from genlab.processes import next_x_sampling
from genlab.processes.next_x import NextX, NextXConfig
from genlab.processes.next_x_sampling import Generation, NextXSampling, ticks
from samplers.grids import uniform
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=8)
PLAIN = NextXSampling(steps=3, guidance=2.0)
KINDS = [
    {"entity": "cell", "entity_size": 2},
    {"entity": "patch"},
    {"entity": "subsample", "entity_size": 2},
    {"entity": "image"},
    {"entity": "scale"},
    {"entity": "cell", "entity_size": 1, "patch": 2},
]


def build(**changes) -> XAR:
    torch.manual_seed(0)
    sizes = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "num_classes": 3, "entity_size": 2}
    return XAR(grid=(4, 4), channels=2, **{**sizes, **changes}).eval()


@pytest.fixture
def network() -> XAR:
    return build()


class Recomputing:
    """A network that keeps no keys and values: each call is the training forward over all that there is."""

    def __init__(self, network: XAR):
        self.network, self.entities = network, network.entities
        self.num_classes, self.null_label = network.num_classes, network.null_label

    def new_cache(self, rows):
        return {}

    def modulations(self, t, label):
        return torch.stack([t, label.float()], dim=-1)[None]  # [1,U,2], in the place of what they make

    def remember(self, x, entity, m, cache):
        cache[entity] = (x, m[0, :, 0])

    def step(self, x, entity, m, cache):
        tokens = torch.zeros(len(x), self.entities.length, x.shape[2])
        t = torch.zeros(len(x), len(self.entities))
        for number, (kept, time) in {**cache, entity: (x, m[0, :, 0])}.items():
            tokens[:, self.entities.span(number)], t[:, number] = kept[: len(x)], time[: len(x)]
        return self.network(tokens, t, m[0, :, 1].long())[:, self.entities.span(entity)]


@pytest.mark.parametrize("sampler", ["euler_maruyama", "heun"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cached_samples_equal_recomputed_ones(kind, sampler):
    network, label = build(**kind), torch.tensor([0, 2, 3])
    settings = NextXSampling(sampler=sampler, steps=3, guidance=2.0, context_noise=0.1)
    got = NextX().sample(network, label, SPEC, spawn(1, range(3)), settings)
    expected = NextX().sample(Recomputing(network), label, SPEC, spawn(1, range(3)), settings)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint", "euler_maruyama", "sde_heun"])
def test_samples_do_not_depend_on_the_batch(network, sampler):
    settings = NextXSampling(sampler=sampler, steps=3, guidance=2.0)
    label = torch.tensor([0, 1, 2])
    together = NextX().sample(network, label, SPEC, spawn(1, range(3)), settings)
    alone = NextX().sample(network, label[2:], SPEC, spawn(1, [2]), settings)
    torch.testing.assert_close(together[2:], alone)
    assert together.shape == (3, *SPEC.shape)


def test_the_first_entity_needs_no_unconditional_half_and_no_condition_is_computed_twice(network, monkeypatch):
    rows, conditions = [], []
    step, modulations = network.step, network.modulations
    monkeypatch.setattr(network, "step", lambda x, *rest: rows.append(len(x)) or step(x, *rest))
    monkeypatch.setattr(
        network, "modulations", lambda t, label: conditions.append((t[0].item(), len(t))) or modulations(t, label)
    )
    NextX().sample(network, torch.tensor([1, 1]), SPEC, spawn(0, range(2)), PLAIN)
    assert rows == [2] * 3 + [4] * 9
    assert sorted(conditions) == [(0, 2), (40, 2), (520, 2), (1000, 2)]  # class 1 and none, at each time


def test_conditions_that_memory_does_not_hold_are_computed_again(network, monkeypatch):
    label = torch.tensor([1, 2])
    expected = NextX().sample(network, label, SPEC, spawn(0, range(2)), PLAIN)
    monkeypatch.setattr(next_x_sampling, "_REMEMBERED", 0)
    assert torch.equal(NextX().sample(network, label, SPEC, spawn(0, range(2)), PLAIN), expected)


def test_guidance_of_one_runs_conditional_rows_alone(network, monkeypatch):
    rows, step = [], network.step
    monkeypatch.setattr(network, "step", lambda x, *rest: rows.append(len(x)) or step(x, *rest))
    NextX().sample(network, torch.tensor([1]), SPEC, spawn(0, [0]), NextXSampling(steps=2))
    assert rows == [1] * 8


def test_guidance_rises_over_entities_or_not():
    assert [NextXSampling(guidance=4.0).scale(entity, 4) for entity in range(4)] == [1, 2, 3, 4]
    assert NextXSampling(guidance=4.0, guidance_ramp="constant").scale(0, 4) == 4
    assert NextXSampling(guidance=4.0).scale(0, 1) == 4


def test_guidance_may_keep_to_an_interval_and_to_channels(network):
    label = torch.tensor([0])
    given = {"sampler": "euler", "steps": 3, "guidance": 3.0}

    def sample(**changes):
        return NextX().sample(network, label, SPEC, spawn(0, [0]), NextXSampling(**{**given, **changes}))

    plain = sample(guidance=1.0)
    torch.testing.assert_close(sample(guidance_interval=(1.0, 1.0)), plain)
    torch.testing.assert_close(sample(guidance_channels=0), plain)
    assert (sample() - plain).abs().max() > 1e-3


def test_noise_in_the_context_changes_all_but_the_first_entity(network):
    label = torch.tensor([0])
    clean, noisy = (
        NextX().sample(network, label, SPEC, spawn(0, [0]), PLAIN.model_copy(update={"context_noise": noise}))
        for noise in (0.0, 0.3)
    )
    assert torch.equal(clean[..., :2, :2], noisy[..., :2, :2])
    assert (clean - noisy)[..., 2:, 2:].abs().max() > 1e-4


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400))
def test_times_are_those_of_the_reference(steps):
    reference = torch.linspace(1, 0.04, steps, dtype=torch.float64)
    assert torch.equal(ticks(1 - uniform(0, 0.96, steps - 1)), (reference.float() * 1000).trunc())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_loss_is_that_of_noisy_tokens_at_their_entities_times(kind):
    network, label = build(**kind), torch.tensor([0, 3])
    tokens = torch.randn(2, *SPEC.shape)
    got = NextX().loss(network, tokens, label, spawn(0, range(2)))["loss"]
    rng = spawn(0, range(2))
    t, x = torch.sigmoid(rng.normal(len(network.entities))), network.entities.arrange(tokens)
    noise, noisy = rng.normal(*x.shape[1:]), x.clone()
    for entity in range(len(network.entities)):
        span, own = network.entities.span(entity), t[:, entity, None, None]
        noisy[:, span] = (1 - own) * x[:, span] + own * noise[:, span]
    error = network(noisy, (1000 * t).floor(), label) - (noise - x)
    torch.testing.assert_close(got, error.square().mean((1, 2)))
    wrapped = SimpleNamespace(module=network)  # as DDP, whose attributes are its own
    with pytest.raises(TypeError, match="not callable"):  # it was recognised
        NextX().loss(wrapped, tokens, label, spawn(0, range(2)))


def test_steps_are_shown_as_images(network):
    events, label = [], torch.tensor([0, 1])
    final = NextX().sample(network, label, SPEC, spawn(0, range(2)), PLAIN, events.append)
    assert [(event.step, event.steps) for event in events] == [(step, 12) for step in range(1, 13)]
    assert torch.equal(events[-1].tokens, final)
    first = events[2].tokens
    assert torch.equal(first[..., :2, :2], final[..., :2, :2])
    assert first[..., 2:, :].abs().max() == 0


def test_editing_all_is_sampling_and_editing_nothing_is_nothing(network):
    label, tokens = torch.tensor([0, 1]), torch.randn(2, *SPEC.shape)
    sampled = NextX().sample(network, label, SPEC, spawn(0, range(2)), PLAIN)
    every, none = torch.ones(8, 8, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    torch.testing.assert_close(NextX().edit(network, label, tokens, every, spawn(0, range(2)), PLAIN), sampled)
    assert torch.equal(NextX().edit(network, label, tokens, none, spawn(0, range(2)), PLAIN), tokens)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_editing_keeps_what_is_not_chosen(kind):
    network, label = build(**kind), torch.tensor([0, 1])
    tokens, mask = torch.randn(2, *SPEC.shape), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 2], mask[1, 3, 3] = True, True
    events: list = []
    edited = NextX().edit(network, label, tokens, mask, spawn(0, range(2)), PLAIN, events.append)
    kept = ~mask[:, None].expand_as(tokens)
    assert torch.equal(edited[kept], tokens[kept])
    assert (edited - tokens)[~kept].abs().min() > 0
    assert torch.equal(events[-1].tokens, edited)
    alone = NextX().edit(network, label[1:], tokens[1:], mask[1:], spawn(0, [1]), PLAIN)
    torch.testing.assert_close(edited[1:], alone)


def test_regenerating_cells_sees_those_before(network):
    label, tokens = torch.tensor([0]), torch.randn(1, *SPEC.shape)
    new = NextX().regenerate(network, label, tokens, [1], spawn(0, [0]), PLAIN)
    assert torch.equal((new != tokens)[0, 0].nonzero(), torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]]))
    other = tokens.clone()
    other[..., :2, :2] += 1
    changed = NextX().regenerate(network, label, other, [1], spawn(0, [0]), PLAIN)
    assert (changed - new)[..., :2, 2:].abs().min() > 0


def test_what_cannot_be_edited(network):
    label, tokens, rng = torch.tensor([0, 1]), torch.zeros(2, *SPEC.shape), spawn(0, range(2))
    for shape in [(5, 4), (2, 2), (2, 4, 6), (4,)]:
        with pytest.raises(GenlabError, match="size of the latent grid, 4 x 4, or a multiple"):
            NextX().edit(network, label, tokens, torch.zeros(shape, dtype=torch.bool), rng, PLAIN)
    with pytest.raises(GenlabError, match="got 3 for 2"):
        NextX().edit(network, label, tokens, torch.zeros(3, 4, 4, dtype=torch.bool), rng, PLAIN)
    with pytest.raises(GenlabError, match=r"entity 4: this network has entities 0\.\.3"):
        NextX().regenerate(network, label, tokens, [2, 4], rng, PLAIN)


def test_a_broken_network_is_noticed(network):
    with torch.no_grad():
        network.pred.bias.fill_(torch.nan)
    with pytest.raises(NonFinite, match=r"samples \[0\]"):
        NextX().sample(network, torch.tensor([0]), SPEC, spawn(0, [0]), PLAIN)


def test_networks_without_entities_are_refused():
    network = DiT(grid=(4, 4), channels=2, width=16, depth=1, heads=2, num_classes=3)
    with pytest.raises(ConfigError, match="needs a network of entities: got DiT; choose xar"):
        NextX().sample(network, torch.tensor([0]), SPEC, spawn(0, [0]), PLAIN)
    with pytest.raises(ValueError, match="needs network xar, got DiT"):
        NextXConfig().check(network)


def test_the_config_builds_the_process(network):
    NextXConfig().check(network)
    assert NextXConfig(time_mean=0.5).build() == NextX(time_mean=0.5)
    assert "guidance_ramp" in NextXSampling().idle()
    assert Generation(network, torch.tensor([0]), 2, NextXSampling()).rows == 1
