"""A run depends on nothing but its seed and its step; memory may run out in between."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ip2p_lib.training import train as training
from ip2p_lib.training.latents import gather_batch, sample_ids_of_step
from ip2p_lib.training.resume import resume, save
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import example_losses, train
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


def everything(state):
    """Bytes of the weights, the average and AdamW's state."""
    return {k: v.detach().numpy().tobytes() for k, v in state.tensors().items()}


@pytest.fixture(scope="module")
def straight(unet):
    return run(unet)


def test_six_steps_equal_three_steps_a_stop_and_three_steps(unet, straight, tmp_path):
    state = TrainState.create(deepcopy(unet), SETTINGS)
    losses = []
    for step in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7):
        losses.append(float(step.loss))
        if step.step == 3:
            break
    save(tmp_path, state)
    fresh = TrainState.create(deepcopy(unet), SETTINGS)
    assert resume(tmp_path, fresh).state["step"] == fresh.step == 3
    rest = train(fresh, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    losses += [float(step.loss) for step in rest]
    assert losses == straight[1]
    assert everything(fresh) == everything(straight[0])
    assert fresh.ema.updates == straight[0].ema.updates == 6


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


def test_a_resumed_run_goes_on_in_the_same_parts(unet, tmp_path):
    until = replace(SETTINGS, steps=3)
    with pytest.warns(UserWarning, match="2 at a time"):
        save(tmp_path, run(Greedy(unet, most=2), settings=until)[0])
    fresh = TrainState.create(deepcopy(unet), SETTINGS)
    resume(tmp_path, fresh)
    assert fresh.micro_batch == 2, "other parts would round otherwise"


def test_without_room_for_one_example_the_message_says_what_to_do(unet):
    with pytest.raises(torch.OutOfMemoryError, match="smaller resolution"):
        run(Greedy(unet, most=0))


def test_a_checkpoint_of_another_u_net_is_refused(unet, tiny_backbone, tmp_path):
    save(tmp_path, TrainState.create(deepcopy(tiny_backbone.unet), SETTINGS))
    with pytest.raises(ValueError, match="another folder"):
        resume(tmp_path, TrainState.create(deepcopy(unet), SETTINGS))
    assert (
        resume(tmp_path / "none", TrainState.create(deepcopy(unet), SETTINGS)) is None
    )
