"""A batch's loss is split by timestep, and may be weighted by it."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.training.loss_weighting import (
    LOSS_WEIGHTINGS,
    bin_losses,
    bin_means,
    bin_names,
    min_snr,
    truncated_snr,
)

SCHEDULE = Schedule.scaled_linear()


@pytest.mark.parametrize("T", [1000, 10, 7])
def test_every_timestep_is_in_the_bin_that_is_named_after_it(T):
    names = [name.removeprefix("t ").split("-") for name in bin_names(T)]
    for first, last in ((int(a), int(b)) for a, b in names):
        for t in (first, last):
            sums, counts = bin_losses(torch.tensor([t]), torch.tensor([2.5]), T)
            at = [int(a) <= t <= int(b) for a, b in names]
            assert sums.tolist() == [2.5 * inside for inside in at]
            assert counts.tolist() == at
    assert names[0][0] == "0" and names[-1][1] == str(T - 1) and len(names) == 4


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_running_mean_weighs_every_example_alike(window):
    numbers = [torch.arange(n) for n in range(1, 8)]
    steps = [bin_losses(100 * i, i + len(i)) for i in numbers]
    means = bin_means(torch.stack(steps), window)
    for i, row in enumerate(means):
        seen = torch.stack(steps[max(0, i + 1 - window) : i + 1]).double()
        sums, counts = seen.sum(0)
        torch.testing.assert_close(row, sums / counts, equal_nan=True)
    assert means[0].isnan().tolist() == [False, True, True, True]


def snr_of_diffusers():
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    return compute_snr(theirs, torch.arange(1000)).double()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_that_of_diffusers(gamma):
    snr, weights = snr_of_diffusers(), min_snr(SCHEDULE, gamma)
    expected = snr.clamp(max=gamma) / snr
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert weights[0] < 0.01 * gamma and weights[-1] == 1


def test_truncated_snr_turns_the_error_of_the_noise_into_that_of_x0():
    """Where SNR < 1 the weights are 1 / SNR up to the maximum, else equal."""
    snr, weights = snr_of_diffusers(), truncated_snr(SCHEDULE)
    assert float(weights.mean()) == pytest.approx(1)
    ratio = weights / weights[0]
    assert torch.equal(ratio[snr > 1.001], torch.ones_like(ratio[snr > 1.001]))
    inner = (snr < 0.999) & (1 / snr < 29.9)
    torch.testing.assert_close(ratio[inner], 1 / snr[inner], rtol=1e-3, atol=0)
    assert float(ratio.max()) == pytest.approx(30)
    assert set(LOSS_WEIGHTINGS) == {"min-snr", "truncated-snr"}
