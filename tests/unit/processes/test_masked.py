"""Masked tokens: losses of the definition, samples that are their seed's own, and a loop that waits for no device."""

import copy
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError, DataError, NonFinite
from genlab.networks.enat import ENAT
from genlab.networks.masked_transformer import MaskedTransformer
from genlab.processes.mask_schedules import beta, count_of, masked_at
from genlab.processes.masked import Masked, MaskedConfig
from genlab.processes.masked_sampling import Generation, MaskedSampling, Streams
from samplers.noise import spawn

GRID, VOCAB, CLASSES, WIDTH = (3, 4), 7, 3, 16
SPEC = LatentSpec("codes", 4, GRID, 24, VOCAB)
LENGTH = GRID[0] * GRID[1]
LABEL = torch.tensor([0, 2, 3, 1])  # 3: no class


def network(name="enat", **options):
    if name == "enat":
        made = ENAT(GRID, VOCAB, CLASSES, WIDTH, encoder_depth=2, decoder_depth=1, heads=2, **options)
    else:
        made = MaskedTransformer(GRID, VOCAB, CLASSES, WIDTH, depth=2, heads=2, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return made.eval()


def images(rows=4):
    return torch.randint(VOCAB, (rows, *GRID), generator=torch.Generator().manual_seed(1))


both = pytest.mark.parametrize("name", ["enat", "plain"])


# --- training --------------------------------------------------------------------------------------------------------


def test_shares_of_training_are_as_named():
    rng = spawn(0, range(4000))
    drawn = beta(rng, 12, 3)
    assert drawn.mean() == pytest.approx(0.8, abs=0.005) and drawn.var() == pytest.approx(0.01, rel=0.1)
    arccos = Masked(schedule="arccos").ratio(rng)
    assert arccos.mean() == pytest.approx(2 / torch.pi, abs=0.02) and arccos.min() >= 0 and arccos.max() <= 1
    learned = Masked(schedule="learned", table=((0, 1), (0.5, 0.5), (1, 0.5)))
    assert learned.ratio(rng).mean() == pytest.approx(0.625, abs=0.01)
    count = count_of(torch.tensor([0.0, 0.5, 1.0]), 12)
    assert count.tolist() == [1, 6, 11]
    uniform = rng.uniform(12)[:3]
    masked = masked_at(uniform, count)
    assert masked.sum(1).tolist() == [1, 6, 11] and (masked <= masked_at(uniform, count + 1)).all()


@both
def test_the_loss_is_the_smoothed_cross_entropy_of_what_is_masked(name):
    made, codes = network(name), images().flatten(1)
    masked = masked_at(spawn(0, range(4)).uniform(LENGTH), torch.tensor([1, 5, 11, 5]))
    losses = Masked(label_smoothing=0.2).loss_at(made, codes, LABEL, masked)
    for row in range(4):
        at = masked[row]
        logits = made(codes[row : row + 1].masked_fill(at, VOCAB), LABEL[row : row + 1])
        logp = logits.log_softmax(-1)
        want = -0.8 * logp.gather(1, codes[row, at, None])[:, 0] - 0.2 * logp.mean(1)
        torch.testing.assert_close(losses["loss"][row], want.mean())
        torch.testing.assert_close(losses["accuracy"][row], (logits.argmax(-1) == codes[row, at]).float().mean())


@both
@pytest.mark.parametrize("reuse", [0.0, 0.5, 1.0])
def test_every_sample_trains_alike_in_any_batch(name, reuse):
    made, process, average = network(name), Masked(reuse=reuse), copy.deepcopy(network(name))
    rows = torch.arange(8)
    codes, label = images(8), LABEL.repeat(2)
    together = process.loss(made, codes, label, spawn(3, rows.tolist()), average=average)["loss"]
    for i in rows.tolist():
        alone = process.loss(made, codes[i : i + 1], label[i : i + 1], spawn(3, [i]), average=average)["loss"]
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_reused_features_are_the_averages_and_of_fewer_tokens():
    made, average, seen = network(), network(), {}
    average_features = average.features

    def features(tokens, label):
        seen["earlier"] = tokens
        out = average_features(tokens, label)
        assert not out.requires_grad
        return out

    average.features = features
    forward = made.forward
    made.forward = lambda tokens, label, previous: (
        seen.update(now=tokens, previous=previous) or forward(tokens, label, previous)
    )
    loss = Masked(reuse=1.0).loss(made, images(), LABEL, spawn(0, range(4)), average=average)["loss"]
    was_masked, now_masked = seen["earlier"] == VOCAB, seen["now"] == VOCAB
    assert torch.equal(seen["previous"][1], was_masked) and (now_masked <= was_masked).all()
    assert (was_masked.sum(1) > now_masked.sum(1)).any()
    loss.sum().backward()
    assert made.prev_proj.mlp.fc1.weight.grad.abs().sum() > 0
    made.zero_grad()
    Masked(reuse=0.0).loss(made, images(), LABEL, spawn(0, range(4)), average=average)["loss"].sum().backward()
    assert seen["previous"] is None
    assert all(parameter.grad is not None for parameter in made.parameters())  # or DDP would wait for it


def test_codes_of_another_tokenizer_are_refused():
    with pytest.raises(DataError, match=r"0\.\.7, but the vocabulary is 0\.\.6"):
        Masked().loss(network(), torch.tensor([[[0, 7]]]), LABEL[:1], spawn(0, [0]))


# --- sampling --------------------------------------------------------------------------------------------------------


def sample(made, seeds=range(4), label=LABEL, on_step=None, seed=0, **settings):
    settings = MaskedSampling(**{"steps": 5, **settings})
    return Masked().sample(made, label, SPEC, spawn(seed, list(seeds)), settings, on_step)


@both
@pytest.mark.parametrize("settings", [{}, {"order": "halton", "top_p": 0.9}, {"guidance": 1.0, "clamp": True}])
def test_a_sample_is_its_seeds_own_whatever_the_batch(name, settings):
    made = network(name)
    together = sample(made, **settings)
    assert together.shape == (4, *GRID) and together.min() >= 0 and together.max() < VOCAB
    for i in range(4):
        assert torch.equal(sample(made, [i], LABEL[i : i + 1], **settings)[0], together[i])
    assert not torch.equal(sample(made, seed=1, **settings), together)


@both
def test_the_loop_never_waits_for_the_device(name):
    generation = Generation(
        network(name), LABEL, GRID, MaskedSampling(steps=6, top_k=5, top_p=0.9), Streams(spawn(0, range(4)))
    )
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        states = list(generation.run())
    assert len(states) == 6
    names = {event.key for event in seen.key_averages()}
    assert "aten::scaled_dot_product_attention" in names
    waits = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_to_cpu", "equal")
    assert not names & {f"aten::{wait}" for wait in waits}


@both
def test_visible_tokens_have_no_logits(name):
    made, shapes = network(name), []
    made.mlm_layer.register_forward_hook(lambda _module, _inputs, logits: shapes.append(tuple(logits.shape)))
    sample(made, steps=4)
    assert shapes == [(4, 12, VOCAB), (8, 11, VOCAB), (8, 8, VOCAB), (8, 4, VOCAB)]  # 4 images, then 4 + 4 rows


@both
def test_the_unguided_first_step_needs_no_null_branch(name):
    made = network(name)
    whole, skipped = (
        Generation(made, LABEL, GRID, MaskedSampling(steps=5), Streams(spawn(0, range(4)))) for _ in range(2)
    )
    rows = []
    skipped.first.step = lambda *state, step=skipped.first.step: rows.append(len(state[0])) or step(*state)
    whole.first = None
    with torch.no_grad():
        for one, other in zip(whole.run(), skipped.run(), strict=True):
            assert torch.equal(one.guess, other.guess) and torch.equal(one.tokens, other.tokens)
    assert rows == [4]
    constant = MaskedSampling(steps=5, guidance_law="constant")
    assert Generation(made, LABEL, GRID, constant, Streams(spawn(0, range(4)))).first is None


def test_guidance_of_one_is_the_conditional_network_alone():
    made = network()
    assert torch.equal(sample(made, guidance=1.0), sample(made, guidance=1.0, guidance_law="constant"))
    made.decoder = lambda label, decoder=made.decoder: decoder(label[:4])
    sample(made, guidance=1.0)  # B rows are enough
    assert MaskedSampling(steps=4, guidance=3.0).scales() == [1, 1.5, 2, 2.5]


def test_temperature_zero_is_the_greedy_limit():
    made = network()
    greedy = sample(made, temperature=0, confidence_temperature=0)
    assert torch.equal(greedy, sample(made, temperature=0, confidence_temperature=0, seed=1))
    assert torch.equal(greedy, sample(made, top_k=1, confidence_temperature=0))
    with torch.no_grad():
        step = network().decoder(LABEL).step(*_all_masked(4))
    assert torch.equal(sample(made, steps=1, temperature=0, guidance=1).flatten(1), step.argmax(-1))


def _all_masked(rows):
    positions = torch.arange(LENGTH).expand(rows, -1)
    return torch.full((rows, LENGTH), VOCAB), positions, positions[:, :0]


def test_events_show_a_guess_of_the_whole_image():
    seen = []
    final = sample(network(), on_step=seen.append)
    assert [(event.step, event.steps) for event in seen] == [(step, 5) for step in range(1, 6)]
    assert all(event.tokens.shape == (4, *GRID) and event.tokens.max() < VOCAB for event in seen)
    assert torch.equal(seen[-1].tokens, final)


def test_what_cannot_be_sampled_is_named():
    with pytest.raises(ConfigError, match=r"sampling.steps must lie in 1\.\.12.*got 13"):
        sample(network(), steps=13, clamp=True)
    assert sample(network(), steps=13).max() < VOCAB  # without clamp some steps reveal nothing
    with pytest.raises(ConfigError, match=r"top_k must lie in 1\.\.7"):
        sample(network(), top_k=8)
    for broken in ({"temperature": -0.1}, {"confidence_temperature": -1}, {"steps": 0}, {"top_p": 0}):
        with pytest.raises(ValueError, match=next(iter(broken))):
            MaskedSampling(**broken)
    made = network()
    with torch.no_grad():
        made.y_embedder.embedding_table.weight[2] = torch.nan
    with pytest.raises(NonFinite, match=r"samples \[1\]"):
        sample(made, guidance=1)
    with pytest.raises(ConfigError, match="needs network enat or masked_transformer: got Linear"):
        sample(torch.nn.Linear(1, 1))


# --- editing ---------------------------------------------------------------------------------------------------------


def edit(made, keep, codes, on_step=None, **settings):
    settings = MaskedSampling(**{"steps": 5, **settings})
    return Masked().edit(made, LABEL, codes, keep, SPEC, spawn(0, range(4)), settings, on_step)


@both
def test_an_edit_keeps_what_it_is_told_to_keep(name):
    made, codes = network(name), images()
    keep = torch.zeros(GRID, dtype=torch.bool)
    keep[:, :2] = True
    made_anew = edit(made, keep, codes)
    assert torch.equal(made_anew[:, keep], codes[:, keep]) and not torch.equal(made_anew, codes)
    other = codes.clone()
    other[:, keep] = (other[:, keep] + 1) % VOCAB
    assert not torch.equal(edit(made, keep, other)[:, ~keep], made_anew[:, ~keep])  # it sees its surroundings
    other = codes.clone()
    other[:, ~keep] = 0
    assert torch.equal(edit(made, keep, other), made_anew)  # and nothing of what it makes anew
    assert torch.equal(edit(made, keep & False, codes), sample(made))
    few = keep.clone()
    few[1:] = True
    seen = []
    edit(made, few, codes, seen.append, clamp=True)  # two codes, five steps
    assert [event.steps for event in seen] == [2, 2]


def test_what_cannot_be_edited_is_named():
    made, codes = network(), images()
    with pytest.raises(ConfigError, match="keeps every position"):
        edit(made, torch.ones(GRID, dtype=torch.bool), codes)
    with pytest.raises(ConfigError, match=r"\(4, 3\) positions, but the grid of codes is \(3, 4\)"):
        edit(made, torch.zeros(4, 3, dtype=torch.bool), codes)
    with pytest.raises(DataError, match="the vocabulary is"):
        edit(made, torch.zeros(GRID, dtype=torch.bool), codes + 1)


# --- settings --------------------------------------------------------------------------------------------------------


def test_learned_schedules_are_read_and_kept(tmp_path):
    points = ((0.0, 1.0), (0.25, 0.9), (1.0, 0.0))
    (tmp_path / "schedule.json").write_text(json.dumps(points))
    (tmp_path / "schedule.txt").write_text("# progress share\n0 1\n0.25, 0.9\n\n1 0\n")
    for name in ("schedule.json", "schedule.txt"):
        for kind in (MaskedConfig, MaskedSampling):
            assert kind(schedule="learned", table=str(tmp_path / name)).table == points
    assert MaskedSampling(schedule="learned", table=points, steps=4).left(100) == [90, 60, 30, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (((0, 1), (0.5, 0)), "from 0 to 1"),
        (((0, 1),), "at least two points"),
        (((0, 1), (0.5, 0.2), (0.5, 0.1), (1, 0)), "progress rises"),
        (((0, 0.5), (1, 0.7)), "share falls"),
        (((0, 1.5), (1, 0)), "within 0..1"),
        ("none.json", "none.json: no table"),
        (None, "needs a table"),
    ],
)
def test_broken_tables_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        MaskedSampling(schedule="learned", table=table)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="takes no table"):
        MaskedConfig(table=((0, 1), (1, 0)))
    with pytest.raises(ValueError, match=r"process\.reuse must be above 0"):
        MaskedConfig(reuse=0).check(network())
    MaskedConfig(reuse=0).check(network("plain"))
    with pytest.raises(ValueError, match="needs network enat or masked_transformer, got Identity"):
        MaskedConfig().check(torch.nn.Identity())
    assert MaskedSampling().idle() == {"table"}
    assert {"temperature_law", "top_k"} <= MaskedSampling(temperature=0).idle()
    assert {"confidence_temperature"} <= MaskedSampling(order="halton").idle()


def test_a_critic_learns_to_tell_guesses_from_given_tokens():
    made = network("plain", critic=True)
    process = Masked(critic=1.0, schedule="linear")
    codes, label = torch.zeros_like(images(32)), torch.zeros(32, dtype=torch.long)  # guesses will differ
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    losses = []
    for step in range(30):
        terms = process.loss(made, codes, label, spawn(step, range(32)))
        optimizer.zero_grad()
        terms["critic"].mean().backward()
        optimizer.step()
        losses.append(terms["critic"].mean().item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_critic_says_what_is_revealed_first(monkeypatch):
    made = network("plain", critic=True)
    monkeypatch.setattr(
        made, "verdict", lambda features: -torch.arange(made.positions).expand(len(features), -1).float()
    )
    shown = []
    settings = {"order": "critic", "steps": made.positions, "schedule": "linear", "confidence_temperature": 0.0}
    generation = Generation(made, LABEL, GRID, MaskedSampling(**settings), Streams(spawn(0, range(len(LABEL)))))
    for state in generation.run():
        shown.append((state.tokens != made.mask_token).sum(1))
        count = shown[-1][0].item()
        assert (state.tokens[:, :count] != made.mask_token).all()
    assert torch.stack(shown)[:, 0].tolist() == list(range(1, made.positions + 1))


def test_a_critic_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="trained without one"):
        sample(network("plain"), order="critic")
    with pytest.raises(ValueError, match="critic: true"):
        MaskedConfig(critic=1.0).check(network("plain"))
    with pytest.raises(ValueError, match="would not be trained"):
        MaskedConfig().check(network("plain", critic=True))
