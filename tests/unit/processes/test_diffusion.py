"""The diffusion process on Gaussian data, whose optimal predictions are known in closed form."""

import math

import pytest
import torch
from pydantic import ValidationError

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError, NonFinite
from genlab.processes.diffusion import Diffusion, DiffusionConfig
from genlab.processes.diffusion_sampling import DiffusionSampling
from genlab.processes.predict import to_noise
from samplers.noise import spawn

SPEC = LatentSpec(kind="continuous", channels=2, grid=(4, 4), image_size=4)
STD = 0.5


class Optimal(Network):
    """The best prediction for data N(m, STD^2), m = label / 2, null m = 0; with `learned`, variances in the middle."""

    num_classes = 4

    def __init__(self, diffusion: Diffusion, offset: float = 0.0):
        super().__init__()
        self.diffusion, self.offset, self.calls = diffusion, offset, []

    def forward(self, x, t, label):
        self.calls.append((len(x), t[0].item()))
        mean = (torch.where(label == self.null_label, 0, label) / 2).view(-1, 1, 1, 1).to(x.dtype)
        link = self.diffusion.chain().gather(t.long(), 4)
        whitened = (x - link.alpha * mean) / (link.alpha**2 * STD**2 + link.sigma**2)
        data, noise = mean + link.alpha * STD**2 * whitened, link.sigma * whitened
        velocity = link.alpha * noise - link.sigma * data
        out = {"data": data, "noise": noise, "velocity": velocity}[self.diffusion.prediction] + self.offset
        return torch.cat([out, torch.zeros_like(out)], 1) if self.diffusion.variance == "learned_range" else out


def sample(diffusion, label, seed=0, indices=None, on_step=None, network=None, **settings):
    rng = spawn(seed, indices if indices is not None else range(len(label)))
    network = network or Optimal(diffusion)
    return diffusion.sample(network, torch.tensor(label), SPEC, rng, DiffusionSampling(**settings), on_step)


PREDICTIONS = ["noise", "data", "velocity"]
VARIANCES = ["fixed_small", "fixed_large", "learned_range"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_samples_have_the_moments_of_the_data(prediction, schedule):
    diffusion = Diffusion(steps=200, schedule=schedule, prediction=prediction)
    for settings in ({"sampler": "ddim"}, {"sampler": "ddpm", "steps": 200}, {"eta": 1.0, "steps": 200}):
        x = sample(diffusion, [2] * 200, **settings)
        assert x.mean().item() == pytest.approx(1.0, abs=0.04)
        assert x.std().item() == pytest.approx(STD, abs=0.04)


@pytest.mark.parametrize("variance", VARIANCES)
def test_every_variance_samples_the_data_with_all_steps(variance):
    x = sample(Diffusion(variance=variance), [2] * 100, sampler="ddpm", steps=1000)
    assert x.std().item() == pytest.approx(STD, abs=0.04)


def test_a_zero_terminal_snr_is_sampled_from_pure_noise():
    for prediction in ("data", "velocity"):
        x = sample(Diffusion(prediction=prediction, zero_terminal_snr=True), [2] * 200)
        assert x.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {}, {"eta": 0.5}, {"respacing": "ddim5"}], ids=str)
def test_a_sample_does_not_depend_on_its_batch(settings):
    options = {"steps": 5, "guidance": 2.0, **settings}
    diffusion = Diffusion(variance="learned_range")
    together = sample(diffusion, [0, 1, 2, 3], **options)
    alone = [sample(diffusion, [i], indices=[i], **options) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-6)


def test_on_step_shows_the_predicted_clean_sample_and_ends_with_the_samples():
    events = []
    x = sample(Diffusion(zero_terminal_snr=True, prediction="data"), [2], steps=4, on_step=events.append)
    assert [(event.step, event.steps) for event in events] == [(k, 4) for k in range(1, 5)]
    torch.testing.assert_close(events[0].tokens, torch.full((1, 2, 4, 4), 1.0))  # from pure noise: the mean
    assert torch.equal(events[-1].tokens, x)


def test_the_network_is_told_the_original_steps():
    diffusion = Diffusion()
    network = Optimal(diffusion)
    sample(diffusion, [1], network=network, steps=4)
    assert [t for _, t in network.calls] == [999, 666, 333, 0]


def test_guidance_interval_saves_the_unconditional_half():
    diffusion = Diffusion()
    network = Optimal(diffusion)
    sample(diffusion, [1], network=network, steps=5, guidance=3.0, guidance_interval=(0.4, 0.9))
    assert [rows for rows, _ in network.calls] == [1, 1, 2, 2, 1]


def test_variances_stay_conditional_under_guidance():
    diffusion = Diffusion(variance="learned_range")

    class Tagged(Optimal):
        def forward(self, x, t, label):
            out = super().forward(x, t, label)
            tag = torch.where(label == self.null_label, 1.0, -1.0).view(-1, 1, 1, 1).expand_as(out[:, 2:])
            return torch.cat([out[:, :2], tag], dim=1)

    chain = diffusion.chain("10")
    denoise = diffusion.stepwise(Tagged(diffusion), torch.tensor([1]), DiffusionSampling(guidance=4.0), chain)
    got = denoise(torch.zeros(1, 2, 4, 4), 5).log_variance
    torch.testing.assert_close(got, chain[5].log_posterior_variance.float().expand_as(got))


def test_guiding_some_channels_leaves_the_others_conditional():
    diffusion = Diffusion()
    plain, guided, some = (
        sample(diffusion, [3], steps=2, **options)
        for options in ({}, {"guidance": 3.0}, {"guidance": 3.0, "guidance_channels": 1})
    )
    torch.testing.assert_close(some[:, :1], guided[:, :1])
    torch.testing.assert_close(some[:, 1:], plain[:, 1:])


def test_clipping_bounds_the_prediction():
    events = []
    x = sample(Diffusion(), [3, 3], clip_denoised=True, steps=5, on_step=events.append)
    assert max(event.tokens.abs().max() for event in events) <= 1
    assert x.abs().max() <= 1


def test_a_diverging_network_is_named():
    diffusion = Diffusion()
    network = Optimal(diffusion, offset=math.nan)
    with pytest.raises(NonFinite, match=r"step 1 of 5, in samples \[0, 1\]"):
        sample(diffusion, [1, 2], network=network, steps=5)


def test_a_variance_without_channels_is_refused():
    diffusion = Diffusion(variance="learned_range")
    with pytest.raises(ConfigError, match="learn_sigma"):
        sample(diffusion, [1], network=Optimal(Diffusion()), sampler="ddpm")


def loss(diffusion, network, count=4000, seed=0):
    rng = spawn(seed, range(count))
    label = torch.full((count,), 2)
    tokens = 1.0 + STD * rng.fork(1).normal(2, 4, 4)
    return diffusion.loss(network, tokens, label, rng)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["none", "min_snr", "soft_min_snr", "p2", "truncated_snr"])
def test_the_optimal_prediction_has_the_least_loss(prediction, weighting):
    diffusion = Diffusion(prediction=prediction, weighting=weighting)
    best = loss(diffusion, Optimal(diffusion))["loss"].mean()
    for offset in (-0.1, 0.1):
        assert loss(diffusion, Optimal(diffusion, offset))["loss"].mean() > best


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "p2", "truncated_snr"])
def test_a_weighting_means_the_same_for_every_prediction(weighting):
    values = [
        loss(diffusion, Optimal(diffusion), 50)["loss"]
        for diffusion in (Diffusion(prediction=prediction, weighting=weighting) for prediction in PREDICTIONS)
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-2, atol=1e-6)


def test_min_snr_of_noise_is_its_formula():
    data, noise = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    for step in (10, 500):
        link = Diffusion().chain()[step]
        ratio = (link.alpha / link.sigma).item() ** 2
        got = Diffusion(weighting="min_snr").loss_at(
            lambda x, t, label: torch.zeros_like(x), data, noise, torch.tensor([step]), torch.tensor([0])
        )
        assert got["loss"].item() == pytest.approx(min(ratio, 5) / ratio, rel=1e-4)


def test_the_bound_trains_the_variance_alone():
    class Learner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Parameter(torch.zeros(4, 4, 4))

        def forward(self, x, t, label):
            return self.out.expand(len(x), -1, -1, -1)

    network, diffusion = Learner(), Diffusion(variance="learned_range")
    losses = loss(diffusion, network, 50)
    (gradient,) = torch.autograd.grad(losses["bound"].mean(), network.out, retain_graph=True)
    assert gradient[:2].abs().max() == 0 < gradient[2:].abs().min()
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["bound"])


def test_the_bound_of_the_optimal_network_is_the_entropy():
    """With the exact means and variances of data N(0, std^2); continuous data in bins of 2/255."""
    diffusion, std = Diffusion(variance="learned_range"), 0.2
    rng = spawn(0, range(16))
    tokens = std * rng.normal(2, 4, 4)

    class Exact(Network):
        num_classes = 0

        def forward(self, x, t, label):
            link = diffusion.chain().gather(t.long(), 4)
            total = link.alpha**2 * std**2 + link.sigma**2
            variance = link.posterior_variance + link.mean_data**2 * std**2 * link.sigma**2 / total
            share = (variance.log() - link.log_posterior_variance) / (link.log_beta - link.log_posterior_variance)
            return torch.cat([link.sigma * x / total, (2 * share - 1).expand_as(x)], dim=1)

    label = torch.zeros(16, dtype=torch.int64)
    bound = diffusion.variational_bound(Exact(), tokens, label, lambda: rng.normal(2, 4, 4))
    entropy = -torch.distributions.Normal(0, std).log_prob(tokens).mean() / math.log(2) + math.log2(255 / 2)
    assert bound.total.mean().item() == pytest.approx(entropy.item(), abs=0.05)
    torch.testing.assert_close(bound.total, bound.prior + bound.terms.sum(1))


def test_noise_is_found_again():
    diffusion = Diffusion()
    label, settings = torch.tensor([1, 2]), DiffusionSampling(steps=200)
    tokens = sample(diffusion, [1, 2], steps=200)
    noise = diffusion.encode(Optimal(diffusion), tokens, label, settings)
    start = spawn(0, range(2)).normal(*SPEC.shape)
    assert (noise - start).abs().max() < 0.15


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_denoiser_gives_clean_data_that_converts(prediction):
    diffusion = Diffusion(prediction=prediction)
    x, label = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    denoiser = diffusion.denoiser(Optimal(diffusion), label, DiffusionSampling())
    expected = Diffusion().denoiser(Optimal(Diffusion()), label, DiffusionSampling())(x, 400)
    torch.testing.assert_close(denoiser(x, torch.tensor([400, 400, 400])), denoiser(x, 400.0))
    torch.testing.assert_close(denoiser(x, 400), expected, rtol=1e-3, atol=1e-4)
    c = diffusion.coefficients(400, x)
    torch.testing.assert_close(c.alpha * denoiser(x, 400) + c.sigma * to_noise("data", denoiser(x, 400), x, c), x)


def test_training_draws_are_the_samples_own():
    diffusion = Diffusion()
    together = loss(diffusion, Optimal(diffusion), 4)["loss"]
    rng = spawn(0, [2])
    tokens = 1.0 + STD * rng.fork(1).normal(2, 4, 4)
    torch.testing.assert_close(
        diffusion.loss(Optimal(diffusion), tokens, torch.tensor([2]), rng)["loss"], together[2:3]
    )


def test_config():
    config = DiffusionConfig(schedule="cosine", variance="learned_range", weighting="min_snr")
    assert config.build() == Diffusion(schedule="cosine", variance="learned_range", weighting="min_snr")
    with pytest.raises(ValidationError, match="pure noise"):
        DiffusionConfig(zero_terminal_snr=True)
    with pytest.raises(ValidationError, match="objective mse"):
        DiffusionConfig(objective="kl", weighting="p2")
    with pytest.raises(ValidationError, match="respacing is written"):
        DiffusionSampling(respacing="ten")
    with pytest.raises(ValidationError, match="eta belongs to ddim"):
        DiffusionSampling(sampler="ddpm", eta=0.5)
    with pytest.raises(ValidationError, match="must go up"):
        DiffusionSampling(guidance_interval=(0.9, 0.1))
    with pytest.raises(ConfigError, match="at most 1000"):
        sample(Diffusion(), [1], steps=1001)
