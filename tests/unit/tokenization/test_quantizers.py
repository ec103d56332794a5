"""Quantisers: the search, what every quantiser promises, learning by averages, usage, storage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from genlab.core.errors import ConfigError, DataError
from genlab.tokenization.quantizers import codes as storage
from genlab.tokenization.quantizers.books import Averaging
from genlab.tokenization.quantizers.codebook import nearest, rotate
from genlab.tokenization.quantizers.configs import QuantizerConfig

CONFIGS = {
    "learned": {"vocab": 32},
    "learned-unit": {"name": "learned", "vocab": 32, "unit": True, "entropy": 0.1},
    "ema": {"vocab": 32, "averaging": {"kmeans": 3}},
    "ema-rotation": {"name": "ema", "vocab": 32, "unit": True, "rotation": True},
    "gumbel": {"vocab": 32, "last_temperature": 0.5},
    "residual": {"vocab": 32, "depth": 3, "block": (2, 1), "depth_dropout": 0.5},
    "residual-learned": {"name": "residual", "vocab": 32, "averaging": None, "shared": False},
    "fsq": {"levels": (5, 4, 3, 3)},
    "lfq": {"bits": 4},
    "bsq": {"bits": 4},
    "simvq": {"vocab": 32},
}


def config_of(case):
    return TypeAdapter(QuantizerConfig).validate_python({"name": case, **CONFIGS[case]})


def maps(seed=0, batch=3):
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**31))
def test_nearest_is_the_brute_force_search_with_ties_to_the_first(n, vocab, channels, chunk, seed):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randint(-3, 4, (n, channels), generator=rng).float()  # integers: exact, and full of ties
    table = torch.randint(-3, 4, (vocab, channels), generator=rng).float()
    distances = (z[:, None] - table).square().sum(-1)
    assert nearest(z, table, chunk).equal(distances.argmin(1))
    assert nearest(z, table).equal(distances.argmin(1))


def test_nearest_stays_in_fp32_under_autocast():
    table = torch.tensor([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest(torch.tensor([[1.0009], [1.0001]]), table).tolist() == [1, 0]


@pytest.mark.parametrize("case", CONFIGS)
def test_every_quantiser_keeps_the_contract(case):
    config = config_of(case)
    quantizer = config.build(4)
    assert (quantizer.kind, quantizer.vocab, quantizer.channels) == (config.kind, config.vocab, 4)
    z = maps().requires_grad_()
    before = torch.random.get_rng_state()
    z_q, codes, loss, terms = quantizer(z)
    assert torch.random.get_rng_state().equal(before), "randomness must not be the global generator's"
    assert z_q.shape == z.shape and loss.shape == (3,) and all(term.shape == (3,) for term in terms.values())
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < config.vocab
    (z_q.square().sum() + loss.sum()).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0

    quantizer.eval()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    codes = quantizer.encode(z)
    torch.testing.assert_close(quantizer.decode(codes), quantizer(z).z, rtol=1e-5, atol=1e-6)
    assert all(value.equal(state[name]) for name, value in quantizer.state_dict().items())
    with pytest.raises(DataError, match="codebook has"):
        quantizer.decode(codes + config.vocab)


@pytest.mark.parametrize("case", ["ema", "ema-rotation", "gumbel", "residual"])
def test_training_resumes_exactly(case):
    config = config_of(case)
    straight, resumed = config.build(4), config.build(4)
    for step in range(2):
        straight(maps(step))
    resumed.load_state_dict(straight.state_dict())
    a, b = straight(maps(2)), resumed(maps(2))
    assert a.z.equal(b.z) and a.codes.equal(b.codes)
    assert all(x.equal(y) for x, y in zip(straight.state_dict().values(), resumed.state_dict().values()))


def test_the_two_weightings_have_one_value_at_equal_weights_and_exchange_gradients():
    base = {"name": "learned", "vocab": 8, "commitment": 0.25}
    new, old = (TypeAdapter(QuantizerConfig).validate_python({**base, "legacy": flag}).build(4) for flag in (0, 1))
    old.load_state_dict(new.state_dict())
    grads = []
    for quantizer in (new, old):
        z = maps().requires_grad_()
        quantizer(z).loss.sum().backward()
        grads.append((z.grad, quantizer.embedding.weight.grad))
    torch.testing.assert_close(grads[1][0], 4 * grads[0][0])
    torch.testing.assert_close(grads[0][1], 4 * grads[1][1])


def test_dead_codes_become_vectors_of_the_batch_and_more_codes_than_vectors_differ():
    book = Averaging(revive_below=1.0).build(16, 4)
    book.weight[1:] = 1e3
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    book.update(vectors, book.look_up(vectors))
    gaps = torch.cdist(book.weight[1:], vectors).min(1).values
    assert gaps.max() < 0.02 and len(book.weight.unique(dim=0)) == 16


def test_averages_converge_to_the_means_of_clusters():
    book = Averaging(decay=0.5, revive_below=0.0).build(2, 2)
    book.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    vectors = torch.tensor([[3.0, 1.0], [5.0, 1.0], [-2.0, 0.0]])
    for _ in range(40):
        book.update(vectors, book.look_up(vectors))
    torch.testing.assert_close(book.weight, torch.tensor([[4.0, 1.0], [-2.0, 0.0]]), rtol=1e-4, atol=1e-4)


def test_residual_errors_shrink_with_depth_and_the_gradient_is_passed_once():
    quantizer = config_of("residual").build(4).eval()
    z = maps().requires_grad_()
    quantizer(z).z.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))
    codes = quantizer.encode(z)
    parts = sum(quantizer.decode_depth(codes, d) for d in range(3))
    torch.testing.assert_close(parts, quantizer.decode(codes))
    assert quantizer.from_blocks(quantizer.to_blocks(z)).equal(z)
    with pytest.raises(ConfigError, match="blocks of 2x1"):
        quantizer(torch.zeros(1, 4, 3, 3))


def test_rotation_keeps_values_and_the_length_ratio_of_gradients():
    z, q = maps()[0].flatten(1).T.clone().requires_grad_(), maps(1)[0].flatten(1).T
    out = rotate(z, q)
    torch.testing.assert_close(out, q, rtol=1e-4, atol=1e-5)
    (out * q).sum().backward()  # the rotation takes the direction of q back to that of z
    torch.testing.assert_close(
        z.grad, (q.norm(dim=1) / z.norm(dim=1)).square()[:, None] * z.detach(), rtol=1e-3, atol=1e-4
    )


def test_configs_refuse_what_does_not_fit():
    with pytest.raises(ConfigError, match="code_channels to 4"):
        config_of("fsq").build(5)
    with pytest.raises(ConfigError, match="4 bits but 6 channels"):
        config_of("bsq").build(6)
    with pytest.raises(ValidationError):
        TypeAdapter(QuantizerConfig).validate_python({"name": "learned", "averaging": {}})
    assert config_of("fsq").vocab == 180 and config_of("lfq").vocab == 16


def test_usage_counts_since_the_last_reading():
    usage = storage.Usage(8, depth=2)
    usage.count(torch.tensor([[[0, 5], [1, 5]], [[2, 5], [3, 5]]]))
    first, second = usage.read()
    assert (first.share, first.dead, first.total, first.bits) == (0.5, 4, 4, 2.0)
    assert math.isclose(first.perplexity, 4.0) and (second.dead, second.bits, second.perplexity) == (7, 0.0, 1.0)
    assert usage.read()[0].total == 0


@given(st.integers(1, 100_000), st.data())
def test_codes_survive_storage(vocab, data):
    codes = torch.tensor(data.draw(st.lists(st.integers(0, vocab - 1), max_size=5)), dtype=torch.int64)
    small = storage.narrow(codes, vocab)
    assert small.dtype == (torch.uint16 if vocab <= 65536 else torch.int32)
    assert storage.widen(small, vocab).equal(codes)
    with pytest.raises(DataError, match="another tokenizer"):
        storage.narrow(torch.tensor([vocab]), vocab)
