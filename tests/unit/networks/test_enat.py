"""ENAT and the plain masked transformer: steps, ragged batches and reuse all agree with the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.enat import ENAT, PRESETS, ENATConfig
from genlab.networks.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from genlab.nn.selection import Selection, put

GRID, LENGTH, VOCAB, CLASSES = (3, 4), 12, 7, 5
ENAT_SIZES = {"width": 16, "encoder_depth": 2, "decoder_depth": 2, "heads": 2}
PLAIN_SIZES = {"width": 16, "depth": 2, "heads": 2}
KINDS = {"enat": (ENAT, ENAT_SIZES), "plain": (MaskedTransformer, PLAIN_SIZES)}
few = settings(max_examples=10, deadline=None)


def awake(kind="enat", **changes):
    """A tiny network in which nothing is silent."""
    torch.manual_seed(0)
    network, sizes = KINDS[kind]
    network = network(GRID, VOCAB, CLASSES, **{**sizes, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return network.eval()


NETWORKS = {kind: awake(kind) for kind in KINDS}
LABEL = torch.tensor([0, 3, CLASSES])
masks = st.lists(
    st.lists(st.sampled_from(["old", "new", "masked"]), min_size=LENGTH, max_size=LENGTH), min_size=3, max_size=3
)


def codes(rows=3):
    return torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def hidden(where):
    return codes().masked_fill(where, VOCAB)


@pytest.mark.parametrize("kind", KINDS)
@given(masks=masks)
@few
@torch.no_grad()
def test_ragged_rows_are_what_each_row_is_alone(kind, masks):
    network = NETWORKS[kind]
    masked = torch.tensor([[what == "masked" for what in row] for row in masks])
    before = torch.tensor([[what != "old" for what in row] for row in masks])
    tokens, previous = hidden(masked), (torch.randn(3, LENGTH, 16), before)
    for given_before in (None, previous):
        logits = network(tokens, LABEL, given_before)
        features = network.features(tokens, LABEL, given_before)
        alone = [
            (tokens[i : i + 1], LABEL[i : i + 1], given_before and tuple(part[i : i + 1] for part in given_before))
            for i in range(3)
        ]
        torch.testing.assert_close(logits, torch.cat([network(*row) for row in alone]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features, torch.cat([network.features(*row) for row in alone]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, network.logits(features)[masked], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(left=st.lists(st.integers(1, LENGTH), min_size=1, max_size=5), seed=st.integers(0, 99))
@few
@torch.no_grad()
def test_steps_of_a_generation_are_passes_with_the_features_of_the_step_before(kind, left, seed):
    network, generator = NETWORKS[kind], torch.Generator().manual_seed(seed)
    order = torch.rand(3, LENGTH, generator=generator).argsort(1)  # which position is revealed last, ...
    decoder, previous, masked_before = network.decoder(LABEL), None, None
    for count in sorted(left, reverse=True):  # an edit begins with some visible; steps may reveal nothing
        masked = torch.zeros(3, LENGTH, dtype=torch.bool).scatter(1, order[:, :count], True)
        tokens = hidden(masked)
        fresh = ~masked if masked_before is None else masked_before & ~masked
        at, new = (where.nonzero()[:, 1].unflatten(0, (3, -1)) for where in (masked, fresh))
        expected = network(tokens, LABEL, previous).unflatten(0, (3, -1))
        torch.testing.assert_close(decoder.step(tokens, at, new), expected, rtol=1e-4, atol=1e-5)
        previous, masked_before = (network.features(tokens, LABEL, previous), masked), masked


def test_what_was_masked_before_is_as_if_nothing_was_there():
    network, masked = awake(), torch.arange(LENGTH).expand(3, -1) > 4
    tokens = hidden(masked)
    nothing = torch.randn(3, LENGTH, 16), torch.ones(3, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(network(tokens, LABEL, nothing), network(tokens, LABEL))
    reused = torch.randn(3, LENGTH, 16), torch.arange(LENGTH).expand(3, -1) > 1
    expected = network(tokens, LABEL, reused)
    assert (expected - network(tokens, LABEL)).abs().max() > 1e-2
    elsewhere = torch.where(reused[1].unsqueeze(2), torch.randn(3, LENGTH, 16), reused[0])
    torch.testing.assert_close(network(tokens, LABEL, (elsewhere, reused[1])), expected)


@pytest.mark.parametrize("reuse", [False, True])
def test_every_parameter_gets_a_gradient_which_ddp_needs(reuse):
    network, masked = awake(), torch.arange(LENGTH).expand(3, -1) > torch.tensor([[3], [5], [7]])
    features = torch.randn(3, LENGTH, 16, requires_grad=True)
    previous = (features, torch.arange(LENGTH).expand(3, -1) > 2) if reuse else None
    network(hidden(masked), LABEL, previous).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    silent = {name for name, parameter in network.named_parameters() if not parameter.grad.any()}
    without = {name for name, _ in network.named_parameters() if name.startswith("prev_proj") or ".kv.A" in name}
    assert silent == (set() if reuse else {name for name in without if name.split(".")[1] not in ("2", "3")})
    assert features.grad is None


def test_the_table_of_codes_learns_by_its_input_only():
    network = awake("plain")
    network.x_embedder.requires_grad_(False)
    network.x_embedder.word_embeddings.requires_grad_(True)
    table = network.x_embedder.word_embeddings.weight
    features = torch.randn(2, 16, requires_grad=True)
    logits = network.logits(features)
    assert logits.shape == (2, VOCAB) and features.grad is None
    assert torch.autograd.grad(logits.sum(), table, allow_unused=True) == (None,)


def test_a_key_bias_that_softmax_ignores_gets_no_gradient():
    network, masked = awake("plain"), torch.arange(LENGTH).expand(3, -1) > 4
    network(hidden(masked), LABEL).square().sum().backward()
    gradient = network.blocks[0].attn.kv["B"].bias.grad
    assert not gradient[:16].any() and gradient[16:].all()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_never_wait_for_the_device(kind):
    network, sizes = KINDS[kind]
    with FakeTensorMode():  # values do not exist here, so that reading one fails
        network = network(GRID, VOCAB, CLASSES, **sizes).eval()
        decoder = network.decoder(torch.zeros(4, dtype=torch.int64))
        tokens = torch.zeros(4, LENGTH, dtype=torch.int64)
        for masked, fresh in ((12, 0), (12, 0), (9, 3), (1, 8)):
            at, new = (torch.zeros(4, count, dtype=torch.int64) for count in (masked, fresh))
            assert decoder.step(tokens, at, new).shape == (4, masked, VOCAB)
        if kind == "enat":
            with pytest.raises(DynamicOutputShapeException):  # training counts what is masked
                network(tokens, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_gives_identical_gradients(kind):
    gradients = []
    for recompute in (False, True):
        network = awake(kind)
        network.activation_checkpointing = recompute
        network(hidden(torch.arange(LENGTH).expand(3, -1) > 4), LABEL).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bfloat16_stays_near_float32(kind):
    network, masked = NETWORKS[kind], torch.arange(LENGTH).expand(3, -1) > torch.tensor([[3], [5], [7]])
    expected = network(hidden(masked), LABEL)
    with torch.autocast("cpu", torch.bfloat16):
        got = network(hidden(masked), LABEL)
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def test_dropout_is_off_unless_asked_for_and_in_evaluation():
    tokens = hidden(torch.arange(LENGTH).expand(3, -1) > 4)
    network = awake(dropout=0.5)
    torch.testing.assert_close(network(tokens, LABEL), NETWORKS["enat"](tokens, LABEL))
    assert (network.train()(tokens, LABEL) - network.eval()(tokens, LABEL)).abs().max() > 0.1
    default = awake()
    torch.testing.assert_close(default.train()(tokens, LABEL), default.eval()(tokens, LABEL))


@given(masks=masks)
@few
def test_selections_come_apart_and_back_together(masks):
    x = torch.randn(3, LENGTH, 2)
    chosen = [torch.tensor([[what == part for what in row] for row in masks]) for part in ("old", "new", "masked")]
    parts = [Selection.of(where) for where in chosen]
    assert torch.equal(put([(part, part.take(x)) for part in parts]), x)
    for where, part in zip(chosen, parts):
        values = part.take(x)
        assert torch.equal(values.flatten(0, 1), x[where]) and torch.equal(part.unpad(part.pad(values)), values)
        rows = part.spread(torch.arange(3.0).view(3, 1, 1, 1)) + torch.zeros_like(values[:, None, :, :1])
        assert rows.flatten().tolist() == where.nonzero()[:, 0].tolist()


SPEC = LatentSpec("codes", 256, (16, 16), 256, vocab=1024)


@pytest.mark.parametrize(("preset", "millions"), [("ENAT-B", 219), ("ENAT-L", 574)])
def test_presets_have_the_published_size(preset, millions):
    with torch.device("meta"):
        network = ENATConfig(preset=preset).build(SPEC, 1000)
    unused = 8 * network.norm.weight.numel() ** 2  # a perceptron that is published too
    assert sum(p.numel() for p in network.parameters()) + unused == pytest.approx(millions * 1e6, rel=4e-3)
    assert not ENATConfig(preset=preset, dropout=0.1).width % PRESETS[preset]["heads"]


def test_reuse_saves_most_of_the_work():
    from torch.utils.flop_counter import FlopCounterMode

    spent = {}
    with torch.device("meta"), torch.no_grad():
        for name, network in {
            "enat": ENATConfig(preset="ENAT-L").build(SPEC, 1000),
            "plain": MaskedTransformerConfig(width=1024, depth=24, heads=16).build(SPEC, 1000),
        }.items():
            decoder, tokens, left, before = network.decoder(torch.zeros(1).long()), torch.zeros(1, 256).long(), 256, 0
            with FlopCounterMode(display=False) as counter:
                for step in range(8):
                    decoder.step(tokens, *(torch.zeros(1, count).long() for count in (left, before)))
                    after = math.floor(256 * math.cos(math.pi / 2 * (step + 1) / 8))
                    left, before = after, left - after
            spent[name] = counter.get_total_flops() / 2e9
    assert spent["enat"] < 130 and spent["plain"] > 2.5 * spent["enat"]  # the specification counts 125 and 649


@pytest.mark.parametrize("kind", [ENATConfig, MaskedTransformerConfig])
def test_configs_refuse_what_cannot_be_built(kind):
    with pytest.raises(ValidationError, match="divisible by heads: got width 100, heads 3"):
        kind(width=100, heads=3)
    with pytest.raises(ConfigError, match="works on codes: got continuous"):
        kind().build(LatentSpec("continuous", 4, (4, 4), 32), 10)
    with pytest.raises(ConfigError, match="9 positions, but the network has 12"):
        NETWORKS["enat" if kind is ENATConfig else "plain"](torch.zeros(1, 9).long(), torch.zeros(1).long())
    with pytest.raises(ConfigError, match="divisible by heads: got width 16, heads 3"):
        awake("enat" if kind is ENATConfig else "plain", heads=3)
    small = {"width": 12, "heads": 2}
    assert kind(**small).build(LatentSpec("codes", 4, (2, 3), 32, vocab=9), 0).null_label == 0
