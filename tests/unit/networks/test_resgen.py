"""ResGen's network: its mixture against the plain formula, its decoder against its forward."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Normal

from genlab.core.contracts import LatentSpec
from genlab.core.errors import ConfigError
from genlab.networks.resgen import ResGenConfig
from genlab.nn.mixture import Mixture, components, mixture_terms

UNIT = torch.linspace(0.5, 2, 24).view(4, 6)
SPEC = LatentSpec("residual", 3, (2, 3), 16, vocab=8, depth=4)


def network(**options):
    """A small network in which everything has a say."""
    torch.manual_seed(0)
    small = {"width": 32, "depth": 2, "heads": 2, "components": 5, "rank": 2}
    made = ResGenConfig(**{**small, **options}).build(SPEC, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(4, 6, 3), torch.randint(0, 5, (4, 6)), torch.tensor([0, 1, 2, 3]), torch.randn(4, 6, 3), UNIT


def mixture():
    torch.manual_seed(2)
    logits, log_scale, shift = torch.randn(7, 5), torch.randn(7, 3), torch.randn(7, 3)
    factors = torch.cat([torch.ones(7, 1), torch.randn(7, 2)], 1)
    bases, means = torch.randn(5, 2, 3), torch.randn(5, 3)
    mu = torch.einsum("nr,krc->nkc", factors[:, 1:], bases) + means
    return Mixture(logits, factors, log_scale, shift, *components(bases, means)), mu


def test_densities_and_points_are_those_of_the_means_written_out():
    mix, mu = mixture()
    scale, z = mix.log_scale.exp().unsqueeze(1), torch.randn(7, 3)
    expected = Normal(scale * mu + mix.shift.unsqueeze(1), scale).log_prob(z.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(mix.log_densities(z), expected)
    noise, chosen = torch.randn(7, 3), torch.arange(7) % 5
    points = scale[:, 0] * (mu[torch.arange(7), chosen] + noise) + mix.shift
    torch.testing.assert_close(mix.points(chosen, noise), points)


def test_the_bound_exceeds_the_likelihood_by_the_divergence_of_responsibilities():
    mix, _ = mixture()
    log_weights, log_densities = mix.log_weights(), mix.log_densities(torch.randn(7, 3))
    terms = mixture_terms(log_weights, log_densities)
    q, p = log_densities.log_softmax(-1), (log_weights + log_densities).log_softmax(-1)
    torch.testing.assert_close(terms.classification + terms.regression - terms.nll, (q.exp() * (q - p)).sum(-1))


@pytest.mark.parametrize("options", [{}, {"ratio": True}, {"positions": "rope"}], ids=str)
@torch.no_grad()
def test_decoder_gives_what_the_forward_gives(options, batch):
    made = network(**options)
    visible, masked, label, target, unit = batch
    log_weights, log_densities = made(*batch, -1.0)
    decoder = made.decoder(label, -1.0)
    for rows in (4, 2):  # guidance that has not begun leaves the null half out
        mix = decoder.step(visible[:rows], masked[:rows], unit[:rows])
        torch.testing.assert_close(mix.log_weights(), log_weights[:rows])
        torch.testing.assert_close(mix.log_densities(target[:rows]), log_densities[:rows], rtol=1e-4, atol=1e-4)
    assert mix.log_scale.min() >= -1


@torch.no_grad()
def test_units_stretch_the_mixture(batch):
    made = network()
    *inputs, target, unit = batch
    _, plain = made(*inputs, target, torch.ones_like(unit))
    _, stretched = made(*inputs, 2 * target, 2 * torch.ones_like(unit))
    torch.testing.assert_close(stretched, plain - 3 * math.log(2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inputs_matter(batch):
    visible, masked, label, target, unit = batch
    plain, ratio = network(), network(ratio=True)
    own = plain(*batch)[0]
    assert not torch.allclose(plain(visible, (masked + 1) % 5, label, target, unit)[0], own)
    assert not torch.allclose(plain(visible, masked, (label + 1) % 4, target, unit)[0], own)
    elsewhere = masked.clone()
    elsewhere[:, 0] = (masked[:, 0] + 1) % 5
    assert not torch.allclose(plain(visible, elsewhere, label, target, unit)[0][:, -1], own[:, -1]), (
        "attention has a reach"
    )
    assert ratio.condition(label, masked).shape == (4, 32)


def test_a_fresh_network_weighs_all_alike_and_all_parameters_learn(batch):
    torch.manual_seed(0)
    fresh = ResGenConfig(width=32, depth=1, heads=2, components=5, rank=2).build(SPEC, 3)
    log_weights, _ = fresh(*batch)
    torch.testing.assert_close(log_weights, torch.full_like(log_weights, -math.log(5)))
    made = network(ratio=True)
    for parts in (made, fresh):
        parts.zero_grad()
    log_weights, log_densities = made(*batch)
    (log_weights + log_densities).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_head_is_float32_under_autocast_and_checkpointing_changes_nothing(batch):
    made = network()
    with torch.autocast("cpu", torch.bfloat16):
        log_weights, log_densities = made(*batch)
    assert log_weights.dtype == log_densities.dtype == torch.float32
    expected = made(*batch)
    made.activation_checkpointing = True
    torch.testing.assert_close(made(*batch), expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValidationError, match="divisible by heads"):
        ResGenConfig(width=32, heads=3)
    with pytest.raises(ValidationError, match="swap them"):
        ResGenConfig(log_scales=(2.0, -7.0))
    with pytest.raises(ConfigError, match="residual codes: got codes ones"):
        ResGenConfig().build(LatentSpec("codes", 3, (2, 3), 16, vocab=8), 3)
