"""Looking at fixed edits shows what a run has learnt, and changes nothing of it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ip2p_lib import distributed
from ip2p_lib.config import Editing
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.rng import key, normal
from ip2p_lib.training import validation
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import start, train
from ip2p_lib.training.validation import (
    Validation,
    ValidationResult,
    read_validation,
    validate_every,
    write_validation,
)
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS


@pytest.fixture(scope="module")
def unet(tiny_backbone):
    return widen_conv_in(tiny_backbone.unet)


@pytest.fixture(scope="module")
def fixed(tiny_backbone, tiny_clip_folder, unet):
    before, truth = normal(key("pictures"), torch.arange(2), (2, 3, 64, 64)).tanh()
    examples = Examples(
        before, ["make it a cat", "turn"], ["a dog", "a tree"], ["a cat", "a bird"],
        truth,
    )  # fmt: skip
    backbone = replace(tiny_backbone, unet=deepcopy(unet))
    settings = Editing(2, 3.0, 1.5, "dpm_solver_pp")
    clip = load_clip(tiny_clip_folder, device="cpu")
    return Validation(Editor(backbone, settings, 64), clip, examples)


def a_run(unet, fixed, every):
    """Steps with looks; the state after them."""
    state = start(deepcopy(unet), SETTINGS)
    steps = train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    if every is None:
        return [(step, None) for step in steps], state
    looked = validate_every(steps, state, fixed, every=every, last=SETTINGS.steps)
    return list(looked), state


def test_a_look_is_due_every_n_steps_and_at_the_last(unet, fixed):
    steps, _ = a_run(unet, fixed, every=4)
    assert [look.step for _, look in steps if look] == [4, 6]
    assert [step.step for step, _ in steps] == [1, 2, 3, 4, 5, 6]


def test_looking_changes_no_step_and_no_weight(unet, fixed):
    looked, one = a_run(unet, fixed, every=1)
    plain, other = a_run(unet, fixed, every=None)
    assert [float(s.loss) for s, _ in looked] == [float(s.loss) for s, _ in plain]
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.unet.training, "the look left the network as it trains"


def test_what_is_looked_at_are_edits_by_the_average(unet, fixed):
    steps, state = a_run(unet, fixed, every=6)
    averaged = deepcopy(unet)
    state.ema.copy_to(averaged)
    editor = replace(
        fixed.editor, backbone=replace(fixed.editor.backbone, unet=averaged)
    )
    examples = fixed.examples
    expected = editor.edit_tensors(examples.before, examples.instructions, seed=[0, 1])
    assert torch.equal(steps[-1][1].edits, expected)


def test_one_state_always_looks_the_same(unet, fixed):
    state = start(deepcopy(unet), SETTINGS)
    one, other = fixed.look(state), fixed.look(state)
    assert torch.equal(one.edits, other.edits)
    assert replace(one, edits=None) == replace(other, edits=None)


def test_a_copied_input_keeps_all_and_changes_nothing(fixed):
    bounds = fixed.bounds()
    copied = bounds["input copied"]
    assert copied.image_similarity == pytest.approx(1, abs=1e-5)
    assert copied.directional_similarity == pytest.approx(0, abs=1e-5)
    assert bounds["exact answer"].image_similarity < 1
    unknown = replace(fixed, examples=replace(fixed.examples, truth=None))
    assert [*unknown.bounds()] == ["input copied"]


def test_of_several_processes_the_first_looks(unet, fixed, monkeypatch):
    monkeypatch.setattr(validation, "rank", lambda: 1)
    steps, _ = a_run(unet, fixed, every=1)
    assert [look for _, look in steps] == [None] * 6
    assert distributed.rank() == 0


def test_no_look_at_all_is_not_a_number_of_steps(unet, fixed):
    with pytest.raises(ValueError, match="A look every 0 steps is impossible"):
        a_run(unet, fixed, every=0)


def test_numbers_read_back_without_those_after_the_step_resumed_at(tmp_path):
    looks = [ValidationResult(0, 1.0, 0.0), ValidationResult(50, 0.9, 1 / 3), ValidationResult(100, 0.8, 0.5)]
    path = write_validation(tmp_path / "run" / validation.LOOKS, looks)
    assert read_validation(path, up_to=100) == looks
    assert read_validation(path, up_to=99) == looks[:2]
    assert read_validation(tmp_path / "none.csv", up_to=5) == []
