"""The loss may be weighted by timestep."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.training.loss_weighting import LOSS_WEIGHTINGS, min_snr, truncated_snr
from tests.support.models import BETAS

SCHEDULE = Schedule.scaled_linear()


def snr_of_diffusers():
    return compute_snr(DDPMScheduler(**BETAS), torch.arange(1000)).double()


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
