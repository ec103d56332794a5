"""Ancestral and DDIM steps, against diffusers' schedulers and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from samplers import ddpm
from samplers.chain import Chain
from samplers.ddpm import Estimate

ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
KEPT = torch.arange(0, 1000, 50)
CHAIN = Chain(ALPHA_BAR[KEPT], KEPT)


def noise_model(x: torch.Tensor, t: int) -> torch.Tensor:
    return 0.3 * torch.sin(2 * x + t / 300) + 0.5 * x


def denoise(x, k):
    link = CHAIN[k]
    data = (x - link.sigma * noise_model(x, CHAIN.timesteps[k])) / link.alpha
    return Estimate(data, link.log_posterior_variance)


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(2, 3, 4, 4, generator=generator)


def theirs(kind, **options):
    scheduler = kind(1000, 1e-4, 0.02, clip_sample=False, timestep_spacing="leading", **options)
    scheduler.set_timesteps(len(KEPT))
    assert scheduler.timesteps.tolist() == KEPT.flip(0).tolist()
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_diffusers(eta):
    x = expected = draws(1)()
    noise, scheduler = draws(), theirs(DDIMScheduler, set_alpha_to_one=True)
    for t in scheduler.timesteps.tolist():
        options = {"eta": eta, "variance_noise": noise()} if eta and t else {}
        expected = scheduler.step(noise_model(expected, t), t, expected, **options).prev_sample
    torch.testing.assert_close(ddpm.ddim(denoise, x, CHAIN, draws(), eta), expected, rtol=1e-4, atol=1e-4)


def test_ancestral_steps_are_diffusers(monkeypatch):
    x = expected = draws(1)()
    noise, scheduler = draws(), theirs(DDPMScheduler)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: noise())
    for t in scheduler.timesteps.tolist():
        expected = scheduler.step(noise_model(expected, t), t, expected).prev_sample
    torch.testing.assert_close(ddpm.ancestral(denoise, x, CHAIN, draws()), expected, rtol=1e-4, atol=1e-4)


def optimal(chain: Chain, std: float):
    """Of data N(0, std^2)."""

    def estimate(x, k):
        link = chain[k]
        share = link.alpha * std**2 / (link.alpha**2 * std**2 + link.sigma**2)
        return Estimate(share * x, link.log_posterior_variance)

    return estimate


def test_ddim_converges_to_the_exact_flow_of_gaussian_data():
    """Its limit keeps x / sqrt(alpha^2 std^2 + sigma^2)."""
    std, x = 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for count in (50, 100, 200):
        kept = torch.linspace(0, 999, count).round().long()
        chain = Chain(ALPHA_BAR[kept], kept)
        start = chain[count - 1]
        exact = x * std / (start.alpha**2 * std**2 + start.sigma**2).sqrt()
        errors.append((ddpm.ddim(optimal(chain, std), x, chain, draws()) - exact).abs().max().item())
    assert errors[2] < 0.02
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]


def test_ancestral_and_stochastic_ddim_sample_the_data():
    std, generator = 0.5, torch.Generator().manual_seed(0)
    chain = Chain(ALPHA_BAR, torch.arange(1000))
    x = torch.randn(4000, generator=generator)

    def noise():
        return torch.randn(4000, generator=generator)

    assert ddpm.ancestral(optimal(chain, std), x, chain, noise).std().item() == pytest.approx(std, abs=0.02)
    assert ddpm.ddim(optimal(chain, std), x, chain, noise, eta=1.0).std().item() == pytest.approx(std, abs=0.02)


def test_reversing_undoes_ddim():
    chain = Chain(ALPHA_BAR, torch.arange(1000))
    data = torch.linspace(-1, 1, 7, dtype=torch.float64)
    noise = ddpm.ddim_reverse(optimal(chain, 0.5), data, chain)
    torch.testing.assert_close(ddpm.ddim(optimal(chain, 0.5), noise, chain, draws()), data, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_is_asked_only_where_it_is_added(eta):
    calls = []

    def noise():
        calls.append(1)
        return torch.zeros(2, 3, 4, 4)

    ddpm.ddim(denoise, torch.zeros(2, 3, 4, 4), CHAIN, noise, eta)
    assert len(calls) == (len(CHAIN) - 1 if eta else 0)


def test_steps_are_reported():
    seen = []
    x = ddpm.ancestral(denoise, torch.zeros(2, 3, 4, 4), CHAIN, draws(), seen.append)
    assert [(progress.step, progress.steps) for progress in seen] == [(k, 20) for k in range(1, 21)]
    assert seen[-1].result is x
    assert torch.equal(seen[-1].result, seen[-1].data * CHAIN[0].mean_data + seen[-2].result * CHAIN[0].mean_state)
