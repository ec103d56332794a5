"""Noise schedules and respacing, against diffusers and by their properties."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from genlab.core.errors import ConfigError
from genlab.processes.schedules import alpha_bars, betas, chain, respace

THEIRS = {"linear": "linear", "cosine": "squaredcos_cap_v2", "scaled_linear": "scaled_linear"}
ENDS = {"linear": (1e-4, 0.02), "cosine": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_schedules_are_those_of_diffusers(name):
    theirs = DDPMScheduler(1000, *ENDS[name], beta_schedule=THEIRS[name])
    torch.testing.assert_close(alpha_bars(name, 1000).float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", sorted(THEIRS))
@pytest.mark.parametrize("steps", [10, 100, 4000])
def test_noise_only_grows_and_ends_near_the_same_level(name, steps):
    assert ((betas(name, steps) > 0) & (betas(name, steps) < 1)).all()
    assert alpha_bars(name, steps)[-1] < 0.01


def test_zero_terminal_snr_is_lin_et_als():
    ours = alpha_bars("linear", 1000, zero_terminal_snr=True)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas("linear", 1000)), 0)
    torch.testing.assert_close(ours, theirs)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(alpha_bars("linear", 1000)[0].item())


@given(steps=st.integers(1, 1200), count=st.integers(1, 1200))
def test_even_respacing_keeps_as_many_as_asked_both_ends_included(steps, count):
    if count > steps:
        with pytest.raises(ConfigError, match=f"at most {steps}"):
            respace(steps, str(count))
        return
    kept = respace(steps, str(count))
    assert len(set(kept)) == count and kept == sorted(kept)
    assert kept[0] == 0 and kept[-1] == (steps - 1 if count > 1 else 0)


def test_published_respacings():
    assert respace(1000, "") == list(range(1000))
    assert respace(1000, "ddim10") == list(range(0, 1000, 100))
    assert respace(1000, "10")[-1] == 999
    assert respace(1000, "trailing4") == [249, 499, 749, 999]
    assert respace(10, "trailing10") == list(range(10))
    assert respace(10, "2,3") == [0, 4, 5, 7, 9]
    assert len(respace(1000, "10,15,20")) == 45


@pytest.mark.parametrize("wrong", ["0", "-3", "ten", "ddim", "ddim0", "5,,5", "5, 5", "ddim5,5"])
def test_what_is_no_respacing_is_refused(wrong):
    with pytest.raises(ConfigError, match="not understood"):
        respace(1000, wrong)


def test_an_impossible_stride_is_refused():
    with pytest.raises(ConfigError, match="try '700'"):
        respace(1000, "ddim700")


@pytest.mark.parametrize("respacing", ["", "7", "ddim10", "1"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_respaced_chain_has_the_noise_levels_of_the_full_one(respacing, zero):
    full = chain("linear", 100, zero, "", torch.device("cpu"))
    some = chain("linear", 100, zero, respacing, torch.device("cpu"))
    for k, step in enumerate(some.timesteps):
        assert some[k].alpha == full[step].alpha and some[k].sigma == full[step].sigma
        assert (some[k].alpha ** 2 + some[k].sigma ** 2).item() == pytest.approx(1)
    assert all(torch.isfinite(column).all() for column in some.columns)


def test_gathered_links_are_those_looked_up_one_by_one():
    tables = chain("cosine", 50, False, "", torch.device("cpu"))
    k = torch.tensor([0, 7, 49])
    batch = tables.gather(k, dims=4)
    assert batch.alpha.shape == (3, 1, 1, 1)
    for row, step in enumerate(k.tolist()):
        for got, expected in zip(batch, tables[step]):
            assert got[row].item() == pytest.approx(expected.item(), rel=1e-6)
    assert tables.times(k).tolist() == [0, 7, 49]
