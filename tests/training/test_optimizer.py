"""AdamW in 8 bits is asked for what the paper trains with, kept, and resumed."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from ip2p_lib.checkpoint import size_of
from ip2p_lib.training.optimizer import adamw, bytes_kept, kept_of, step_unless
from ip2p_lib.training.options import Economy
from ip2p_lib.training.train import resume, save, start, train
from tests.support import stand_in_bitsandbytes
from tests.support.train_in_parallel import Small, draw
from tests.support.train_to_be_killed import LATENTS, SCHEDULE, SETTINGS

EIGHT = Economy(eight_bit=True)


class Wide(Small):
    """Has one weight large enough to be kept in 8 bits."""

    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(6, 900), nn.Linear(900, 4))
        for name, weight in self.named_parameters():
            start = draw(name, len(weight), *weight.shape[1:])
            weight.data = start.reshape(weight.shape) / 10


@pytest.fixture
def asked(monkeypatch):
    return stand_in_bitsandbytes.install(monkeypatch)


def everything(state):
    return {k: v.detach().numpy().tobytes() for k, v in state.tensors().items()}


def run(state, steps=SETTINGS.steps):
    for step in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
        if step.step == steps:
            break
    return state


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ImportError, match=r'pip install -e "\.\[gpu\]".*eight_bit=False'
    ):
        start(Wide(), SETTINGS, EIGHT)
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    (line,) = extras["gpu"]
    assert line.startswith("bitsandbytes>=") and ",<" in line


def test_it_is_asked_for_all_trained_weights_with_the_papers_decay(asked):
    unet = Wide()
    unet.image.requires_grad_(False)
    start(unet, SETTINGS, EIGHT)
    assert asked == [{"weights": 4, "weight_decay": SETTINGS.weight_decay}]


def test_the_rate_of_a_step_is_the_schedules(asked):
    state = run(start(Wide(), SETTINGS, EIGHT), steps=1)
    assert state.optimizer.param_groups[0]["lr"] == SETTINGS.learning_rate


def test_what_it_keeps_is_saved_and_a_resumed_run_ends_in_the_same_bits(
    asked, tmp_path
):
    straight = run(start(Wide(), SETTINGS, EIGHT))
    save(tmp_path, run(start(Wide(), SETTINGS, EIGHT), steps=3))
    fresh = start(Wide(), SETTINGS, EIGHT)
    resume(tmp_path, fresh)
    assert {s["step"] for s in fresh.optimizer.state.values()} == {3}
    run(fresh)
    assert everything(fresh) == everything(straight)
    kinds = {name.split("/")[0] for name in straight.tensors()}
    assert kinds == {"unet", "ema", "state1", "state2", "absmax1", "absmax2"}
    assert straight.tensors()["state1/text.0.weight"].dtype is torch.uint8


def test_a_checkpoint_in_32_bits_is_not_resumed_in_8(asked, tmp_path):
    save(tmp_path, start(Wide(), SETTINGS))
    with pytest.raises(ValueError, match="another economy"):
        resume(tmp_path, start(Wide(), SETTINGS, EIGHT))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_bad_step_changes_nothing(asked, eight_bit):
    state = run(start(Wide(), SETTINGS, Economy(eight_bit=eight_bit)), steps=2)
    for weight in state.unet.parameters():
        weight.grad = torch.ones_like(weight)
    before, counted = everything(state), state.facts()
    step_unless(torch.tensor(True), state.optimizer)
    assert (everything(state), state.facts()) == (before, counted)
    step_unless(torch.tensor(False), state.optimizer)
    assert everything(state) != before


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_bytes_it_keeps_are_foretold(asked, eight_bit):
    weights = [nn.Parameter(torch.ones(n)) for n in (1, 4095, 4096, 70_001)]
    optimizer = adamw(weights, 0.01, eight_bit=eight_bit)
    for weight in weights:
        kept = size_of(kept_of(optimizer, weight))
        assert kept == bytes_kept(weight.numel(), eight_bit=eight_bit)
