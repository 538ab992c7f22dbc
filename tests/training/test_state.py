"""A step that is not finite changes nothing, and float16 trains by a scaled loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ip2p_lib.training.resume import resume, save
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.train import train
from tests.support.train_in_parallel import Small
from tests.support.train_to_be_killed import LATENTS, SCHEDULE, SETTINGS

FP16 = TrainingOptions(autocast=torch.float16)


class Spoiled(nn.Module):
    """A U-Net whose prediction is multiplied by ``value`` at some calls."""

    def __init__(self, calls, value=math.inf):
        super().__init__()
        self.module, self.at, self.value, self.calls = Small(), calls, value, 0

    def forward(self, *args, **options):
        self.calls += 1
        (eps,) = self.module(*args, **options)
        return (eps * self.value if self.calls in self.at else eps,)


def everything(state):
    """Bytes of the weights, the average and AdamW's state."""
    return {k: v.detach().numpy().tobytes() for k, v in state.tensors().items()}


def run(state, steps=SETTINGS.steps):
    """Take steps; returns everything after each."""
    snapshots = []
    for step in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
        snapshots.append(everything(state))
        if step.step == steps:
            break
    return snapshots


@pytest.mark.parametrize(("call", "value"), [(1, math.nan), (3, math.inf), (6, -1e38)])
def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(call, value, tmp_path):
    state = TrainState.create(Spoiled({call}, value), SETTINGS)
    with pytest.raises(FloatingPointError, match=f"Step {call} was refused"):
        for _ in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
            save(tmp_path, state)
    with pytest.raises(FloatingPointError):
        save(tmp_path, state)
    fresh = TrainState.create(Spoiled(set()), SETTINGS)
    if call > 1:
        run(fresh, call - 1)
        assert everything(state) == everything(fresh)
    assert state.step == state.ema.updates == call - 1
    assert len(list(tmp_path.iterdir())) == min(call - 1, 2), "the finite steps"


def test_a_gpu_that_is_not_waited_for_takes_no_step_after_a_bad_one(monkeypatch):
    """There the scale is read late; until then nothing may change, EMA included."""
    state = TrainState.create(Spoiled({3}, math.nan), SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "check", lambda self: None)
        after = run(state)
    assert len(after) == SETTINGS.steps and len(set(map(str, after[1:]))) == 1
    with pytest.raises(FloatingPointError, match="Step 3 was refused"):
        state.check()
    assert state.step == state.ema.updates == 2


def test_in_float16_it_is_skipped_and_counted_and_the_scale_halved():
    state = TrainState.create(Spoiled({3, 6}), SETTINGS, FP16)
    after = run(state)
    assert len(after) == SETTINGS.steps
    assert state.scaler.get_scale() == 2.0**14
    for i in range(1, len(after)):
        same = after[i] == after[i - 1]  # weights, average and AdamW's state
        assert same == (i + 1 in (3, 6)), f"step {i + 1}"
    assert state.ema.updates == SETTINGS.steps - 2


def test_overflow_at_a_scale_of_1_ends_the_run(tmp_path):
    state = TrainState.create(Spoiled(range(3, 99)), SETTINGS, FP16)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 4.0})
    with pytest.raises(FloatingPointError, match="Step 5 was refused"):
        run(state)
    first = TrainState.create(Small(), SETTINGS, FP16)
    run(first, 2)
    names = {name: name.replace("/module.", "/") for name in state.tensors()}
    assert {names[k]: v for k, v in everything(state).items()} == everything(first)
    with pytest.raises(FloatingPointError):
        save(tmp_path, state)


def test_float16_takes_the_steps_of_float32_to_its_rounding():
    full, half, parts = (
        TrainState.create(Small(), SETTINGS, o) for o in (None, FP16, FP16)
    )
    parts.micro_batch = 2
    for state in (full, half, parts):
        run(state)
    for other in (half, parts):
        for a, b in zip(full.unet.parameters(), other.unet.parameters(), strict=True):
            assert b.dtype is torch.float32
            torch.testing.assert_close(b, a, rtol=0, atol=2e-3)
    assert half.ema.updates == half.step


def test_a_resumed_run_has_the_same_scale_and_ends_in_the_same_bits(tmp_path):
    straight = TrainState.create(Spoiled({2, 6}), SETTINGS, FP16)
    run(straight)
    state = TrainState.create(Spoiled({2}), SETTINGS, FP16)
    run(state, 4)
    save(tmp_path, state)
    # Of its calls the second is step 6.
    fresh = TrainState.create(Spoiled({2}), SETTINGS, FP16)
    resume(tmp_path, fresh)
    assert fresh.scaler.get_scale() == 2.0**15
    run(fresh)
    assert everything(fresh) == everything(straight)
    assert fresh.metadata() == straight.metadata()


@pytest.mark.parametrize("kind", ["unet", "ema", "exp_avg_sq"])
def test_a_state_that_is_not_finite_is_never_saved(kind, tmp_path):
    """A huge rate makes infinite weights of finite gradients, unseen by the loss."""
    state = TrainState.create(Small(), SETTINGS)
    with torch.no_grad():
        state.tensors()[f"{kind}/image.bias"][1] = math.inf
    with pytest.raises(FloatingPointError, match="nothing was saved"):
        save(tmp_path, state)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_needs_another_loss_scaling_is_refused(tmp_path):
    save(tmp_path, TrainState.create(Small(), SETTINGS))
    with pytest.raises(ValueError, match="other options"):
        resume(tmp_path, TrainState.create(Small(), SETTINGS, FP16))


def test_only_float32_weights_are_trained():
    with pytest.raises(ValueError, match="must be float32"):
        TrainState.create(Small().half(), SETTINGS, FP16)
    with pytest.raises(ValueError, match="must be float32"):
        TrainState.create(Small().requires_grad_(False), SETTINGS)
    with pytest.raises(ValueError, match="add_editor_lora go together"):
        TrainState.create(Small(), SETTINGS, replace(FP16, lora_rank=4))
