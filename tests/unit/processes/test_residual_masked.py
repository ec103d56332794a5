"""Masked residual codes: the loss on masks, and sampling by its promises."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError, DataError, GenlabError, NonFinite
from genlab.networks.resgen import ResGenConfig
from genlab.processes.residual_masked import ResidualMasked, ResidualMaskedConfig, masking
from genlab.processes.residual_sampling import Latents, ResidualSampling, blank, generate, guess, streams
from genlab.tokenization.quantizers.residual import ResidualVQ
from samplers.noise import SampleRng, spawn
from samplers.residual_fill import plan, visible

GRID, DEPTH, VOCAB, CHANNELS, CLASSES = (2, 3), 3, 8, 4, 3
SETTINGS = ResidualSampling(steps=6, guidance=2.0, top_p=0.9)


class Codes(torch.nn.Module):
    """What the process meets of a tokenizer: codes that become finer with depth."""

    def __init__(self, depth=DEPTH, block=(1, 1)):
        super().__init__()
        config = ResidualVQ(vocab=VOCAB, depth=depth, shared=False, averaging=None, block=block)
        self.quantizer = config.build(CHANNELS).requires_grad_(False)
        self.spec = LatentSpec("residual", CHANNELS, GRID, 8, vocab=VOCAB, depth=depth)
        torch.manual_seed(0)
        for d, book in enumerate(self.quantizer.books):
            book.weight.normal_(std=3.0 * 0.5**d)


def network(depth=DEPTH, seed=1):
    """A network that has something to say."""
    torch.manual_seed(seed)
    spec = LatentSpec("residual", CHANNELS, GRID, 8, vocab=VOCAB, depth=depth)
    made = ResGenConfig(width=32, depth=1, heads=2, components=6, rank=2).build(spec, CLASSES)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def system():
    codes = Codes()
    return network(), ResidualMasked().over(codes), codes.spec


def sample(system, label, rng, settings=SETTINGS, on_step=None):
    made, process, spec = system
    return process.sample(made, torch.tensor(label), spec, rng, settings, on_step)


@pytest.mark.parametrize("mog_loss", ["nll", "bound", "bound_detached"])
def test_losses_are_bounds_and_each_sample_has_its_own(system, mog_loss):
    made, process, _ = system
    process = replace(process, mog_loss=mog_loss)
    codes = torch.randint(0, VOCAB, (5, *GRID, DEPTH))
    label = torch.tensor([0, 1, 2, 3, 0])
    losses = process.loss(made, codes, label, spawn(0, range(5)))
    assert set(losses) == {"loss", "nll", "classification", "regression"}
    assert all(value.shape == (5,) for value in losses.values())
    bound = losses["classification"] + losses["regression"]
    assert (bound >= losses["nll"] - 1e-5).all()
    torch.testing.assert_close(losses["loss"] / CHANNELS, losses["nll"] if mog_loss == "nll" else bound)
    alone = process.loss(made, codes[3:4], label[3:4], spawn(0, [3]))
    torch.testing.assert_close(alone["loss"], losses["loss"][3:4], rtol=1e-4, atol=1e-4)
    losses["loss"].mean().backward()


def test_visible_and_masked_sums_split_the_whole():
    vectors, masked = torch.randn(2, 5, 3, 4), torch.tensor([[0, 1, 2, 3, 3], [3, 0, 0, 1, 2]])
    split = masking(vectors, masked)
    torch.testing.assert_close(split.visible + split.target, vectors.sum(2))
    assert (split.target[0, 0] == 0).all() and (split.visible[0, 3] == 0).all()
    torch.testing.assert_close(split.target[0, 1], vectors[0, 1, -1])


def test_scale_makes_unit_variance_and_floor_is_below_the_spacing_of_the_last_codes(system):
    _, process, _ = system
    latents = Latents(process.tokenizer.quantizer, process.scale)
    vectors = latents.vectors(torch.randint(0, VOCAB, (20_000, DEPTH))).sum(1)
    assert vectors.var(0).mean() == pytest.approx(1, rel=0.05)
    assert 0 < process.scale_floor < 0.5
    kept = ResidualMasked(scale=2.0, scale_floor=0.1).over(process.tokenizer)
    assert (kept.scale, kept.scale_floor) == (2.0, 0.1)


def test_samples_are_codes_and_the_same_in_any_batch(system):
    label = [0, 1, 2, 3, 1]
    together = sample(system, label, spawn(7, range(5)))
    assert together.shape == (5, *GRID, DEPTH)
    assert together.dtype == torch.int64 and together.min() >= 0 and together.max() < VOCAB
    assert len(together.unique(dim=0)) == 5
    for index in range(5):
        assert torch.equal(sample(system, label[index : index + 1], spawn(7, [index]))[0], together[index])


class Counted:
    """A decoder whose calls are counted."""

    def __init__(self, decoder):
        self.decoder, self.rows = decoder, []

    def step(self, seen, masked, unit):
        self.rows.append(len(seen))
        return self.decoder.step(seen, masked, unit)


def rounds(depth, settings, decoder=None, guided=False):
    codes = Codes(depth)
    latents = Latents(codes.quantizer)
    label = torch.tensor([0, 1, 3, 3]) if guided else torch.tensor([0, 1])
    decoder = decoder or network(depth).decoder(label)
    positions = GRID[0] * GRID[1]
    state = blank(2, positions, CHANNELS, depth, torch.device("cpu"))
    left = plan(settings.schedule, positions * depth, settings.steps, settings.literal_steps)
    noise = streams(spawn(0, range(2)), positions, depth, CHANNELS)
    with torch.no_grad():
        return left, latents, list(generate(decoder, latents, state, left, settings, noise, guided))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_calls_do_not_depend_on_depth(depth):
    counted = Counted(network(depth).decoder(torch.tensor([0, 1, 3, 3])))
    rounds(depth, SETTINGS, counted, guided=True)
    assert counted.rows == [2, 4, 4, 4, 4, 4], "guidance has not begun at the first step"


@pytest.mark.parametrize("confidence", ["likelihood", "weight", "residual"])
@pytest.mark.parametrize("literal", [False, True])
def test_codes_are_revealed_coarse_first_and_as_many_as_planned(confidence, literal):
    settings = SETTINGS.model_copy(update={"confidence": confidence, "literal_steps": literal, "schedule": "cosine"})
    left, latents, done = rounds(DEPTH, settings, guided=True)
    for step, each in enumerate(done):
        assert (each.before.masked.sum(1) == left[step]).all() and (each.after.masked.sum(1) == left[step + 1]).all()
        assert (each.after.masked <= each.before.masked).all()
        kept = visible(each.before.masked, DEPTH)
        assert torch.equal(each.after.codes[kept], each.before.codes[kept]), "what is visible stays"
        shown = visible(each.after.masked, DEPTH).unsqueeze(-1)
        torch.testing.assert_close(each.after.visible, (latents.vectors(each.after.codes) * shown).sum(-2))
        promised = guess(each.before, each.latent, latents)
        assert torch.equal(promised[shown[..., 0]], each.after.codes[shown[..., 0]]), "as searching everything gives"


@pytest.mark.parametrize("confidence", ["likelihood", "weight", "residual"])
def test_the_loop_never_waits_for_the_device(confidence):
    settings = SETTINGS.model_copy(update={"confidence": confidence})
    positions, device = GRID[0] * GRID[1], torch.device("cuda")
    left = plan(settings.schedule, positions * DEPTH, settings.steps)
    with FakeTensorMode(), device, torch.no_grad():  # tensors of a GPU that need not be there; reading one is an error
        latents = Latents(Codes().quantizer)
        decoder = network().decoder(torch.zeros(4, dtype=torch.int64))
        state = blank(2, positions, CHANNELS, DEPTH, device)
        noise = streams(SampleRng(0, torch.arange(2)), positions, DEPTH, CHANNELS)
        done = list(generate(decoder, latents, state, left, settings, noise, guided=True))
        assert len(done) == 6 and done[-1].after.codes.device.type == "cuda"
        assert guess(done[-1].before, done[-1].latent, latents).shape == (2, positions, DEPTH)
        with pytest.raises(DataDependentOutputException):
            bool(done[-1].after.masked.any())


def test_one_step_is_one_draw():
    _, latents, (only,) = rounds(DEPTH, SETTINGS.model_copy(update={"steps": 1}))
    expected = latents.quantizer.encode((only.latent / latents.scale).mT.unflatten(2, GRID))
    assert torch.equal(only.after.codes.unflatten(1, GRID), expected)


def test_temperature_zero_is_greedy_and_needs_no_seed(system):
    cold = SETTINGS.model_copy(
        update={"component_temperature": 0.0, "noise_temperature": 0.0, "confidence_temperature": 0.0}
    )
    assert torch.equal(sample(system, [0, 1], spawn(0, [0, 1]), cold), sample(system, [0, 1], spawn(5, [8, 9]), cold))
    for name in ("component", "noise", "confidence"):
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            ResidualSampling(**{f"{name}_temperature": -0.1})


def test_events_show_finished_codes(system):
    events = []
    tokens = sample(system, [0, 1], spawn(0, [0, 1]), on_step=events.append)
    assert [(event.step, event.steps) for event in events] == [(step, 6) for step in range(1, 7)]
    assert all(event.tokens.shape == tokens.shape and event.tokens.max() < VOCAB for event in events)
    assert torch.equal(events[-1].tokens, tokens)
    assert torch.equal(sample(system, [0, 1], spawn(0, [0, 1])), tokens), "watching changes nothing"


def test_edits_keep_what_they_are_told_to(system):
    made, process, spec = system
    label, codes = torch.tensor([0, 2]), torch.randint(0, VOCAB, (2, *GRID, DEPTH))
    keep = torch.tensor([[True, False, True], [True, True, False]])

    def edit(keep, settings=SETTINGS):
        return process.edit(made, label, codes, keep, spec, spawn(3, [0, 1]), settings)

    edited = edit(keep)
    assert torch.equal(edited[:, keep], codes[:, keep])
    assert not torch.equal(edited, codes)
    assert torch.equal(edit(torch.ones_like(keep)), codes)
    assert torch.equal(edit(torch.zeros_like(keep)), sample(system, [0, 2], spawn(3, [0, 1])))
    assert edit(keep, SETTINGS.model_copy(update={"steps": 18})).shape == codes.shape, "more steps than codes to make"
    with pytest.raises(GenlabError, match="a mask of"):
        edit(keep[:1])


def test_targets_are_measured_whole_or_count_by_count(system):
    _, process, _ = system
    whole, counted = (ResidualMasked(unit=unit).over(process.tokenizer) for unit in ("whole", "count"))
    label, codes = torch.tensor([0, 1]), torch.randint(0, VOCAB, (2, *GRID, DEPTH))
    seen = []

    def network(visible, masked, label, target, unit, floor):
        seen.append((masked, unit))
        return torch.zeros(*masked.shape, 1), torch.zeros(*masked.shape, 1)

    for each in (whole, counted):
        each.loss(network, codes, label, spawn(0, [0, 1]))
    (masked, ones), (_, units) = seen
    assert (ones == 1).all()
    vectors = Latents(process.tokenizer.quantizer, counted.scale).vectors(torch.randint(0, VOCAB, (1, 20_000, DEPTH)))
    for count in masked[masked > 0].unique().tolist():
        spread = vectors[..., -count:, :].sum(-2).var(1, correction=0).mean().sqrt()
        assert units[masked == count][0].item() == pytest.approx(spread.item(), rel=0.05)


def test_it_learns_which_vectors_belong_to_a_class(system):
    _, process, spec = system
    process = ResidualMasked(unit="count").over(process.tokenizer)  # 120 steps are few
    latents = Latents(process.tokenizer.quantizer, process.scale)
    torch.manual_seed(0)
    codes = torch.randint(0, VOCAB, (CLASSES, *GRID, DEPTH))
    wanted = latents.vectors(codes).sum(-2)
    made = ResGenConfig(width=32, depth=1, heads=2, components=8, rank=8).build(spec, CLASSES)
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    for step in range(120):
        label = torch.arange(24) % CLASSES
        loss = process.loss(made, codes[label], label, spawn(step, range(24)))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    label = torch.arange(30) % CLASSES
    sampled = process.sample(made.eval(), label, spec, spawn(0, range(30)), ResidualSampling(steps=6))
    error = (latents.vectors(sampled).sum(-2) - wanted[label]).square().mean()
    assert error < 0.25 * wanted.var()


def test_what_does_not_fit_is_refused(system):
    made, process, spec = system
    rng, label = spawn(0, [0]), torch.tensor([0])
    with pytest.raises(ConfigError, match="19, but an image has 18 codes"):
        sample(system, [0], rng, ResidualSampling(steps=19))
    with pytest.raises(ConfigError, match="made for 2 codes a position, the tokenizer has 3"):
        process.sample(network(2), label, spec, rng, SETTINGS)
    with pytest.raises(ConfigError, match="needs network resgen"):
        process.sample(torch.nn.Identity(), label, spec, rng, SETTINGS)
    with pytest.raises(DataError, match="2 codes a position"):
        process.loss(made, torch.zeros(1, *GRID, 2, dtype=torch.int64), label, rng)
    with pytest.raises(DataError, match="codebook has"):
        process.loss(made, torch.full((1, *GRID, DEPTH), VOCAB), label, rng)
    with pytest.raises(ConfigError, match="residual codes: got codes ones"):
        ResidualMasked().over(SimpleNamespace(spec=replace(spec, kind="codes")))
    with pytest.raises(ConfigError, match=r"quantizer.block \[1, 1\]"):
        ResidualMasked().over(Codes(block=(1, 2)))
    with pytest.raises(ConfigError, match="needs a tokenizer with a residual quantizer"):
        ResidualMasked().over(SimpleNamespace(spec=spec))
    with pytest.raises(ConfigError, match="bind it with"):
        ResidualMasked().loss(made, torch.zeros(1, *GRID, DEPTH, dtype=torch.int64), label, rng)
    with pytest.raises(ValueError, match="needs network resgen"):
        ResidualMaskedConfig().check(torch.nn.Identity())


def test_broken_networks_are_named(system):
    _, process, spec = system
    broken = network()
    with torch.no_grad():
        broken.label_embedder.weight[1] = torch.nan
    with pytest.raises(NonFinite, match=r"samples \[1\]"):
        process.sample(broken, torch.tensor([0, 1]), spec, spawn(0, [0, 1]), ResidualSampling(steps=4))
