"""The precision suits the machine, and float16 trains by a scaled loss."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ip2p_lib import device as precision
from ip2p_lib.device import choose_precision
from ip2p_lib.training import loss_scale
from ip2p_lib.training.loss_scale import LossScale
from ip2p_lib.training.options import Economy
from ip2p_lib.training.train import resume, save, start, train
from tests.support.train_in_parallel import Small
from tests.support.train_to_be_killed import LATENTS, SCHEDULE, SETTINGS

FP16 = Economy(autocast=torch.float16)


@pytest.fixture
def card(monkeypatch):
    """Pretend that this machine has a GPU of some kind."""

    def pretend(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: capability
        )

    return pretend


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "why"),
    [
        ("Tesla T4", (7, 5), torch.float16, "older than Ampere and would emulate"),
        ("Tesla V100", (7, 0), torch.float16, "the loss is scaled"),
        ("A100", (8, 0), torch.bfloat16, "the range of float32"),
        ("L4", (8, 9), torch.bfloat16, "no loss is scaled"),
        ("H100", (9, 0), torch.bfloat16, "bfloat16 on H100"),
    ],
)
def test_a_card_gets_the_half_precision_it_has(card, name, capability, dtype, why):
    card(name, capability)
    chosen = choose_precision("cuda")
    assert chosen.autocast is dtype and why in chosen.why and name in chosen.why
    assert Economy(autocast=chosen.autocast).scaled == (dtype is torch.float16)
    assert choose_precision("cuda", torch.float32).autocast is None
    assert choose_precision("cuda", torch.float16).autocast is torch.float16


def test_bfloat16_is_refused_where_a_card_emulates_it(card):
    card("Tesla T4", (7, 5))
    with pytest.raises(ValueError, match=r"T4 is older than Ampere.*float16 with"):
        choose_precision("cuda", torch.bfloat16)


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_computes_in_bfloat16_only_in_hardware(monkeypatch, feature):
    def pretend(features):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)

    pretend({feature: False, "avx512_f": True, "cpu_name": "old"})
    with pytest.raises(ValueError, match="14 to 28 times slower than float32"):
        choose_precision("cpu", torch.bfloat16)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.13
    assert precision._cpu_features() == {}
    monkeypatch.undo()
    pretend({feature: True})
    assert choose_precision("cpu", torch.bfloat16).autocast is torch.bfloat16


def test_a_cpu_computes_in_float32_unless_asked_and_never_in_float16():
    chosen = choose_precision("cpu")
    assert chosen.autocast is None and "same bits" in chosen.why
    with pytest.raises(ValueError, match="is for GPUs"):
        choose_precision("cpu", torch.float16)


# ------------------------------------------------------------ the scale of the loss


@pytest.mark.parametrize("pattern", ["g" * 9, "bgg" * 4, "ggbggggbbgggggbg", "b" * 9])
def test_the_scale_follows_torchs_own(monkeypatch, pattern):
    """Against GradScaler, which has no least scale, on the same gradients."""
    monkeypatch.setattr(loss_scale, "GROWTH_EVERY", 3)
    ours, weight = LossScale("cpu"), nn.Parameter(torch.ones(2))
    theirs = torch.amp.GradScaler("cpu", init_scale=loss_scale.FIRST, growth_interval=3)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for kind in pattern:
        optimizer.zero_grad()
        value = math.inf if kind == "b" else 3.0
        theirs.scale((weight * value).sum()).backward()
        gradient = torch.full((2,), value) * ours.scale
        theirs.unscale_(optimizer)
        ours.unscale([gradient])
        assert torch.equal(gradient, weight.grad)
        ours.update(torch.tensor(kind == "b"))
        theirs.step(optimizer)
        theirs.update()
        assert ours.scale == theirs.get_scale()
    assert ours.skipped == pattern.count("b")


def test_gradients_too_small_for_float16_are_learnt_from():
    """They reach the weights as in float32; unscaled, float16 makes them zero."""

    def gradient(scale, dtype):
        layer = nn.Linear(4, 4, bias=False)
        layer.weight.data.fill_(0.5)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            out = layer(layer(torch.ones(2, 4)))
        (out.float().sum() * 1e-9 * scale).backward()
        return layer.weight.grad / scale

    exact = gradient(1, None)
    assert not gradient(1, torch.float16).any()
    torch.testing.assert_close(gradient(2**16, torch.float16), exact, rtol=2e-3, atol=0)


class Overflowing(nn.Module):
    """A U-Net whose answer is infinite at some calls."""

    def __init__(self, calls):
        super().__init__()
        self.module, self.at, self.calls = Small(), calls, 0

    def forward(self, *args, **options):
        self.calls += 1
        (eps,) = self.module(*args, **options)
        return (eps * math.inf if self.calls in self.at else eps,)


def everything(state):
    return {k: v.detach().numpy().tobytes() for k, v in state.tensors().items()}


def run(calls, state=None, steps=SETTINGS.steps, **options):
    state = state or start(Overflowing(calls), SETTINGS, FP16)
    taken = []
    for step in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0, **options):
        taken.append((step, everything(state)))
        if step.step == steps:
            break
    return state, taken


def test_a_step_that_overflows_is_skipped_and_counted_and_the_scale_halved():
    state, taken = run({3, 6})
    assert len(taken) == SETTINGS.steps and state.skipped == 2
    assert state.loss_scale.scale == loss_scale.FIRST / 4
    states = [dict(kept) for _, kept in taken]
    for i in range(1, len(states)):
        same = all(
            states[i][k] == states[i - 1][k]
            for k in states[i]
            if not k.startswith(("ema/", "loss_scale/"))
        )
        assert same == (i + 1 in (3, 6)), f"step {i + 1}"
    assert all(t.isfinite().all() for t in state.tensors().values())


def test_float16_takes_the_steps_of_float32_to_its_rounding():
    full = start(Small(), SETTINGS)
    list(train(full, LATENTS, SCHEDULE, SETTINGS, run_seed=0))
    half = start(Small(), SETTINGS, FP16)
    list(train(half, LATENTS, SCHEDULE, SETTINGS, run_seed=0))
    for a, b in zip(full.unet.parameters(), half.unet.parameters(), strict=True):
        assert b.dtype is torch.float32
        torch.testing.assert_close(b, a, rtol=0, atol=2e-3)
    assert half.skipped == 0


def test_three_in_a_row_at_the_least_scale_are_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0)
    before, _ = run(set(), steps=2)
    words = r"Step 6 was skipped, as were the 2 before it.*least loss scale, 1\."
    state = start(Overflowing({3, 4, 5, 6}), SETTINGS, FP16)
    with pytest.raises(FloatingPointError, match=words):
        run(None, state)
    kept, first = everything(state), everything(before)
    assert all(kept[k] == v for k, v in first.items() if k.startswith(("unet", "exp")))
    with pytest.raises(FloatingPointError):
        save(tmp_path, state)
    assert run({3, 4, 5, 7})[0].skipped == 4, "a good step in between begins anew"


def test_a_resumed_run_has_the_same_scale_and_ends_in_the_same_bits(tmp_path):
    straight, _ = run({2, 6})
    state, _ = run({2}, steps=4)
    save(tmp_path, state)
    fresh = start(Overflowing({2}), SETTINGS, FP16)  # of its calls the second is step 6
    resume(tmp_path, fresh)
    assert fresh.loss_scale.scale == loss_scale.FIRST / 2 and fresh.skipped == 1
    run(None, fresh)
    assert everything(fresh) == everything(straight)


def test_parts_of_a_batch_are_scaled_alike():
    whole, _ = run(set())
    state = start(Overflowing(set()), SETTINGS, FP16)
    state.micro_batch = 2
    run(None, state)
    for a, b in zip(whole.unet.parameters(), state.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_another_economys_checkpoint_is_refused(tmp_path):
    save(tmp_path, start(Small(), SETTINGS))
    with pytest.raises(ValueError, match="another economy"):
        resume(tmp_path, start(Small(), SETTINGS, FP16))


def test_only_float32_weights_are_trained():
    with pytest.raises(ValueError, match=r"must be float32 .*unet.float\(\)"):
        start(Small().half(), SETTINGS, FP16)
    with pytest.raises(ValueError, match="must be float32 and are none"):
        start(Small().requires_grad_(False), SETTINGS)
    lora = replace(FP16, lora_rank=4)
    with pytest.raises(ValueError, match=r"LoRA of rank 4.*has no LoRA"):
        start(deepcopy(Small()), SETTINGS, lora)
