"""A run depends on its seed and step alone; its loss and gradients are equation 1's."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ip2p_lib import rng
from ip2p_lib.config import Training
from ip2p_lib.training import train as training
from ip2p_lib.training.latents import gather_batch, sample_ids_of_step
from ip2p_lib.training.loss_weighting import min_snr
from ip2p_lib.training.resume import resume, save
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import drop_conditioning, example_losses, train
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS


@pytest.fixture(scope="module")
def unet(tiny_backbone):
    return widen_conv_in(tiny_backbone.unet)


def test_the_rate_rises_then_stays_or_falls_to_zero():
    paper = training.learning_rate
    rates = [paper(SETTINGS, step) for step in range(6)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    falling = replace(SETTINGS, warmup=0, decay=True)
    rates = [paper(falling, step) for step in range(7)]
    assert rates[0] == pytest.approx(1e-3) and rates[3] == pytest.approx(5e-4)
    assert rates[6] == pytest.approx(0) and rates == sorted(rates, reverse=True)


def run(unet, latents=LATENTS, settings=SETTINGS, seed=7, **options):
    state = TrainState.create(deepcopy(unet), settings)
    steps = list(train(state, latents, SCHEDULE, settings, run_seed=seed, **options))
    return state, [float(step.loss) for step in steps]


@pytest.fixture(scope="module")
def straight(unet):
    return run(unet)


def test_adamw_and_warm_up_equal_torchs(unet, straight):
    reference = deepcopy(unet)
    optimizer = torch.optim.AdamW(reference.parameters(), weight_decay=0.01)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 4)
        sample_ids = sample_ids_of_step(7, step, 4, len(LATENTS))
        batch = gather_batch(LATENTS, sample_ids, run_seed=7, step=step, device="cpu")
        options = {"run_seed": 7, "step": step, "drop": 0.05}
        example_losses(reference, SCHEDULE, batch, **options)[0].mean().backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    pairs = zip(reference.parameters(), straight[0].unet.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-5


def test_gradients_of_a_caller_do_not_enter_the_first_step(unet, straight):
    state = TrainState.create(deepcopy(unet), SETTINGS)
    for weight in state.unet.parameters():
        weight.grad = torch.ones_like(weight)
    steps = train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    assert [float(step.loss) for step in steps] == straight[1]


class Greedy(nn.Module):
    """A U-Net that runs out of memory above some number of rows, from a call on."""

    def __init__(self, unet, most, from_call=0):
        super().__init__()
        self.module, self.most, self.from_call, self.sizes = unet, most, from_call, []

    def forward(self, sample, *args, **options):
        self.sizes.append(len(sample))
        if len(sample) > self.most and len(self.sizes) > self.from_call:
            raise torch.OutOfMemoryError
        return self.module(sample, *args, **options)


@pytest.mark.parametrize(("at", "most"), [(0, 1), (3, 2)])
def test_running_out_of_memory_changes_the_parts_and_not_the_steps(
    unet, straight, at, most
):
    parts = [2, 2] if most == 2 else [2, 1, 1, 1, 1]
    words = f"in step {at + 1} .* {most} at a time"
    with pytest.warns(UserWarning, match=words) as said:
        state, losses = run(Greedy(unet, most, from_call=at))
    assert len(said) == 1, "said more than once"
    assert state.unet.sizes[: at + 1 + len(parts)] == [4] * (at + 1) + parts
    assert state.micro_batch == most
    assert state.ema.updates == 6, "once an optimiser step, not once a part"
    assert losses == pytest.approx(straight[1], abs=1e-6)
    whole, split = straight[0].tensors(), state.tensors()
    gap = max((whole[k] - split[k]).abs().max() for k in whole if k.startswith("unet"))
    assert gap < 1e-4  # AdamW divides rounding by tiny gradients


def test_without_room_for_one_example_the_message_says_what_to_do(unet):
    with pytest.raises(torch.OutOfMemoryError, match="add_editor_lora"):
        run(Greedy(unet, most=0))


def test_a_checkpoint_of_another_u_net_is_refused(unet, tiny_backbone, tmp_path):
    save(tmp_path, TrainState.create(deepcopy(tiny_backbone.unet), SETTINGS))
    with pytest.raises(ValueError, match="another folder"):
        resume(tmp_path, TrainState.create(deepcopy(unet), SETTINGS))
    assert (
        resume(tmp_path / "none", TrainState.create(deepcopy(unet), SETTINGS)) is None
    )


def dropped(u):
    """Masks of the examples that lost their text, and their image, at a rate of 5 %."""
    text, image = torch.ones(len(u), 1, 1), torch.ones(len(u), 1, 1, 1)
    text, image = drop_conditioning(text, image, -torch.ones(1, 1, 1), u)
    return text.flatten() == -1, image.flatten() == 0


def test_one_number_decides_in_the_order_of_the_released_code():
    u = torch.tensor([0.0, 0.049, 0.05, 0.099, 0.1, 0.149, 0.15, 0.999])
    no_text, no_image = dropped(u)
    assert no_text.tolist() == [True, True, True, True, False, False, False, False]
    assert no_image.tolist() == [False, False, True, True, True, True, False, False]
    with pytest.raises(ValueError, match="rate"):
        drop_conditioning(*torch.ones(3, 8, 1, 1), u, rate=0.34)


# A plain float64 reference shares the draws, and the U-Net's class of diffusers.
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


def kind_dropped(u):
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
    text = LATENTS.text[LATENTS.text_row[row]].double()
    lost = kind_dropped(float(drawn("drop", one)[0]))
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
