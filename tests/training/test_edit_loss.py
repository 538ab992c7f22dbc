"""The loss is equation 1, drawn fairly, and each conditioning falls for its share."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ip2p_lib.rng import key, uniform
from ip2p_lib.training.latents import Batch, gather_batch, sample_ids_of_step
from ip2p_lib.training.train import drop_conditioning, example_losses
from tests.support.small_training import LATENTS, SCHEDULE, random


class Oracle(nn.Module):
    """Sees what the U-Net is given, and answers with zeros."""

    def forward(self, sample, t, encoder_hidden_states, return_dict):
        self.sample, self.t, self.text = sample, t, encoder_hidden_states
        return (torch.zeros_like(sample[:, :4]),)


def batch_of(n, **changes):
    sample_ids = sample_ids_of_step(0, 0, n, len(LATENTS))
    batch = gather_batch(LATENTS, sample_ids, run_seed=0, step=0, device="cpu")
    return replace(batch, **changes)


def test_the_u_net_gets_what_diffusers_would_give_it():
    from diffusers import DDPMScheduler

    oracle, n = Oracle(), 64
    batch = batch_of(n, target_logvar=torch.full((n, 4, 8, 8), -100.0))
    losses, t = example_losses(oracle, SCHEDULE, batch, run_seed=0, step=0, drop=0.0)
    noisy, image = oracle.sample.chunk(2, dim=1)
    assert torch.equal(image, batch.condition), "the condition latent is not scaled"
    assert torch.equal(oracle.text, batch.text)
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    a = theirs.alphas_cumprod[oracle.t][:, None, None, None]
    noise = (noisy - a.sqrt() * batch.target_mean * 0.18215) / (1 - a).sqrt()
    assert torch.equal(t, oracle.t)
    torch.testing.assert_close(
        losses, noise.square().mean((1, 2, 3)), rtol=0, atol=1e-3
    )
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_timesteps_and_the_vaes_gaussian_are_unbiased():
    oracle, n = Oracle(), 4000
    flat = torch.zeros(n, 4, 8, 8)
    batch = Batch(
        flat, flat + 2 * math.log(3), flat, random(n, 1, 1), random(1, 1, 1), 0.5,
        torch.arange(n),
    )  # fmt: skip
    example_losses(oracle, SCHEDULE, batch, run_seed=0, step=0, drop=0.0)
    assert oracle.t.min() < 5 and oracle.t.max() > 994
    assert abs(oracle.t.float().mean() - 499.5) < 15
    a = SCHEDULE.alphas_cumprod[oracle.t]
    variance = oracle.sample[:, :4].double().square().mean((1, 2, 3))
    expected = a * (0.5 * 3) ** 2 + (1 - a)
    assert abs((variance / expected).mean() - 1) < 0.01


def test_each_conditioning_is_dropped_for_its_share():
    oracle, n = Oracle(), 20_000
    flat = torch.zeros(n, 4, 1, 1)
    batch = Batch(
        flat, flat, flat + 1, torch.ones(n, 1, 1), torch.zeros(1, 1, 1), 1.0,
        torch.arange(n),
    )  # fmt: skip
    example_losses(oracle, SCHEDULE, batch, run_seed=0, step=0, drop=0.05)
    no_text = (oracle.text == 0).flatten(1).all(1)
    no_image = (oracle.sample[:, 4:] == 0).flatten(1).all(1)
    shares = [no_text & ~no_image, no_text & no_image, no_image & ~no_text]
    for share in shares:
        assert abs(share.float().mean() - 0.05) < 0.006  # four standard deviations


def dropped(u):
    """Masks of the examples that lost their text, and their image, at a rate of 5 %."""
    text, image = torch.ones(len(u), 1, 1), torch.ones(len(u), 1, 1, 1)
    text, image = drop_conditioning(text, image, -torch.ones(1, 1, 1), u)
    return text.flatten() == -1, image.flatten() == 0


def test_dropout_is_five_percent_each_within_binomial_bounds():
    n = 100_000
    no_text, no_image = dropped(uniform(key(0, "drop"), torch.arange(n)))
    bound = 4 * math.sqrt(0.05 * 0.95 / n)
    for case in (no_text & ~no_image, no_text & no_image, ~no_text & no_image):
        assert abs(case.double().mean().item() - 0.05) < bound


def test_one_number_decides_in_the_order_of_the_released_code():
    u = torch.tensor([0.0, 0.049, 0.05, 0.099, 0.1, 0.149, 0.15, 0.999])
    no_text, no_image = dropped(u)
    assert no_text.tolist() == [True, True, True, True, False, False, False, False]
    assert no_image.tolist() == [False, False, True, True, True, True, False, False]


def test_other_rows_are_untouched_and_the_null_values_are_the_given_ones():
    text, image, null = torch.rand(2, 5, 3), torch.rand(2, 4, 6, 6), torch.rand(1, 5, 3)
    u = torch.tensor([0.07, 0.5])
    new_text, new_image = drop_conditioning(text, image, null, u)
    assert torch.equal(new_text[0], null[0]) and torch.equal(new_text[1], text[1])
    assert not new_image[0].any() and torch.equal(new_image[1], image[1])
    with pytest.raises(ValueError, match="rate"):
        drop_conditioning(text, image, null, u, rate=0.34)
