import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab.training import power_ema


@given(st.floats(0.005, 0.28))
def test_widths_and_exponents_are_inverse(std):
    assert power_ema.width(power_ema.exponent(std)) == pytest.approx(std, rel=1e-8)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_updates_build_the_profile(std):
    """The share of each step in an average that is updated step by step."""
    shares = np.zeros(200)
    for step in range(200):
        keep = power_ema.decay(std, step + 1, 1)
        shares *= keep
        shares[step] += 1 - keep
    assert shares.sum() == pytest.approx(1)
    expected = power_ema.profile(std, np.arange(200) + 0.5, 200)
    np.testing.assert_allclose(shares, expected, atol=0.02 * expected.max())


def test_other_widths_can_be_made_of_snapshots():
    """Weights that move smoothly, averaged in two widths, combined into a third that was not tracked."""
    steps, stds, wanted = 400, (0.05, 0.10), 0.07
    averages = dict.fromkeys((*stds, wanted), 0.0)
    times, widths, snapshots = [], [], []
    for step in range(1, steps + 1):
        weight = np.sin(step / 40)
        for std in averages:
            keep = power_ema.decay(std, step, 1)
            averages[std] = keep * averages[std] + (1 - keep) * weight
        if step % 50 == 0:
            for std in stds:
                times.append(step)
                widths.append(std)
                snapshots.append({"w": torch.tensor([averages[std]]), "count": torch.tensor(step)})
    weights = power_ema.combination(times, widths, steps, wanted)
    combined = power_ema.combine(snapshots, weights.tolist())
    assert combined["w"].item() == pytest.approx(averages[wanted], abs=2e-3)
    assert combined["count"] == steps


def test_a_snapshot_itself_is_recovered_and_later_ones_are_refused():
    weights = power_ema.combination([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 200, 0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-8)
    with pytest.raises(ValueError, match="later"):
        power_ema.combination([100, 300], [0.05, 0.05], 200, 0.1)
