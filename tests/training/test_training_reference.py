"""A training step's loss and every gradient are those of a plain float64 reference.

The reference shares the draws with the library, whose fairness test_training checks,
and the U-Net's class, which is diffusers'. All else is written out here.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch

from ip2p_lib import rng
from ip2p_lib.config import Training
from ip2p_lib.training.loss_weighting import min_snr
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import train
from tests.support.small_training import LATENTS, SCHEDULE

SEED, BATCH, DROP = 3, 12, 0.2  # the rate at which every kind of dropout occurs here
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SIGNAL = np.cumprod(1 - BETAS)  # share of signal at each timestep
CASES = ["neither", "text", "both", "image"]


def drawn(purpose, sample_ids, shape=None, high=None):
    key = rng.key(SEED, purpose, 0)
    if shape is not None:
        return rng.normal(key, sample_ids, shape).double()
    return rng.integers(key, sample_ids, high) if high else rng.uniform(key, sample_ids)


def sample_ids_of_first_step():
    """Two epochs of the 6 pairs, each in its own order."""
    order = [
        rng.uniform(rng.key(SEED, "order", e), torch.arange(6)).argsort() + 6 * e
        for e in (0, 1)
    ]
    return torch.cat(order)


def dropped(u):
    return CASES[1 + int(u // DROP)] if u < 3 * DROP else CASES[0]


def reference_example(sample_id, t):
    """Sample (8, h, w), hidden states (L, D) and noise (4, h, w) of one example."""
    row, one = int(sample_id) % 6, sample_id[None]
    flip = int(drawn("flip", one, high=2)[0])
    mean, logvar, condition = (
        x[row, flip].double()
        for x in (LATENTS.target_mean, LATENTS.target_logvar, LATENTS.condition)
    )
    noise, spread = (drawn(p, one, (4, 8, 8))[0] for p in ("noise", "target"))
    target = 0.18215 * (mean + logvar.exp().sqrt() * spread)
    noisy = SIGNAL[t] ** 0.5 * target + (1 - SIGNAL[t]) ** 0.5 * noise
    text = LATENTS.text[LATENTS.instruction[row]].double()
    lost = dropped(float(drawn("drop", one)[0]))
    if lost in ("text", "both"):
        text = LATENTS.null_text[0].double()
    if lost in ("image", "both"):
        condition = torch.zeros_like(condition)
    return torch.cat([noisy, condition]), text, noise, lost


def reference_gradients(unet, gamma):
    """Loss, named gradients, and which dropouts occurred, example by example."""
    unet, sample_ids = deepcopy(unet).double(), sample_ids_of_first_step()
    times = drawn("timestep", sample_ids, high=1000).tolist()
    total, seen = 0.0, set()
    for sample_id, t in zip(sample_ids, times, strict=True):
        sample, text, noise, lost = reference_example(sample_id, t)
        eps = unet(sample[None], t, encoder_hidden_states=text[None]).sample[0]
        snr = SIGNAL[t] / (1 - SIGNAL[t])
        weight = min(snr, gamma) / snr if gamma else 1.0
        loss = weight * ((eps - noise) ** 2).sum() / noise.numel() / BATCH
        loss.backward()
        total, seen = total + loss.item(), seen | {lost}
    return total, {name: w.grad for name, w in unet.named_parameters()}, seen


class Witness(torch.optim.AdamW):
    """Keeps the gradients it is about to use."""

    def step(self, closure=None):
        weights = self.param_groups[0]["params"]
        self.seen = [weight.grad.clone() for weight in weights]
        return super().step(closure)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_the_loss_and_every_gradient_are_those_of_a_float64_reference(
    tiny_backbone, gamma, micro_batch
):
    unet = widen_conv_in(tiny_backbone.unet)
    expected, gradients, seen = reference_gradients(unet, gamma)
    assert seen == set(CASES), "every kind of dropout takes part"
    settings = Training(steps=1, batch_size=BATCH, drop=DROP, max_grad_norm=1e9)
    state = TrainState.create(unet, settings)
    state.optimizer.__class__, state.micro_batch = Witness, micro_batch
    weights = min_snr(SCHEDULE, gamma) if gamma else None
    options = {"run_seed": SEED, "weights": weights}
    (step,) = train(state, LATENTS, SCHEDULE, settings, **options)
    assert float(step.loss) == pytest.approx(expected, rel=1e-5)
    names = gradients.keys()
    for name, ours in zip(names, state.optimizer.seen, strict=True):
        scale = gradients[name].abs().max()
        alone = "mid_block" in name and "attn1.to_" in name  # attends to one place
        assert scale > 0 or alone, f"{name} learns nothing"
        assert (ours - gradients[name]).abs().max() <= 1e-4 * scale + 1e-9, name
