"""A batch's loss is split by noise level, and may be weighed by it."""

import pytest
import torch

from ip2p_lib.diffusion.samplers import Schedule
from ip2p_lib.training.loss_weighting import (
    BANDS,
    band_means,
    band_names,
    by_band,
    min_snr,
)


@pytest.mark.parametrize("T", [1000, 10, 7])
def test_every_timestep_is_in_the_band_that_is_named_after_it(T):
    names = [name.removeprefix("t ").split("-") for name in band_names(T)]
    for first, last in ((int(a), int(b)) for a, b in names):
        for t in (first, last):
            sums, counts = by_band(torch.tensor([t]), torch.tensor([2.5]), T)
            at = [int(a) <= t <= int(b) for a, b in names]
            assert sums.tolist() == [2.5 * inside for inside in at]
            assert counts.tolist() == at
    assert names[0][0] == "0" and names[-1][1] == str(T - 1) and len(names) == BANDS


def test_the_bands_of_a_batch_add_up_to_its_loss():
    t, losses = torch.tensor([3, 999, 251, 250, 0, 740]), torch.arange(6.0)
    sums, counts = by_band(t, losses)
    assert sums.tolist() == [0 + 4, 2 + 3, 5, 1] and counts.tolist() == [2, 2, 1, 1]
    assert sums.sum() / counts.sum() == losses.mean()


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_running_mean_weighs_every_example_alike(window):
    steps = []
    for n in range(1, 8):
        t = torch.arange(n) * 100
        steps.append(by_band(t, t + n))
    means = band_means(torch.stack(steps), window)
    for i, row in enumerate(means):
        sums, counts = (
            torch.stack(steps[max(0, i + 1 - window) : i + 1]).double().sum(0)
        )
        torch.testing.assert_close(row, sums / counts, equal_nan=True)
    assert means[0].isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_what_diffusers_has_for_a_network_that_predicts_noise(gamma):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    snr = compute_snr(theirs, torch.arange(1000)).double()
    weights = min_snr(Schedule.scaled_linear(), gamma)
    expected = torch.minimum(snr, torch.tensor(gamma).double()) / snr
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert weights[0] < 0.01 * gamma and weights[-1] == 1


@pytest.mark.parametrize("gamma", [0, -5.0])
def test_a_gamma_that_would_turn_learning_round_is_refused(gamma):
    with pytest.raises(ValueError, match="must be positive"):
        min_snr(Schedule.scaled_linear(), gamma)
