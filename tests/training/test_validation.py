"""Validation edits with the averaged weights, and changes nothing of the run."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ip2p_lib import distributed
from ip2p_lib.config import Editing
from ip2p_lib.editing.editor import Editor
from ip2p_lib.evaluation.metrics import Examples
from ip2p_lib.rng import key, normal
from ip2p_lib.training import validation
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import train
from ip2p_lib.training.validation import Validation, validate_every
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS


@pytest.fixture(scope="module")
def unet(tiny_backbone):
    return widen_conv_in(tiny_backbone.unet)


@pytest.fixture(scope="module")
def fixed(tiny_backbone, clip, unet):
    before, truth = normal(key("pictures"), torch.arange(2), (2, 3, 64, 64)).tanh()
    examples = Examples(
        before, ["make it a cat", "turn"], ["a dog", "a tree"], ["a cat", "a bird"],
        truth,
    )  # fmt: skip
    backbone = replace(tiny_backbone, unet=deepcopy(unet))
    settings = Editing(2, 3.0, 1.5, "dpm_solver_pp")
    return Validation(Editor(backbone, settings, 64), clip, examples)


def a_run(unet, fixed, every):
    """Steps with results; the state after them."""
    state = TrainState.create(deepcopy(unet), SETTINGS)
    steps = train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7)
    if every is None:
        return [(step, None) for step in steps], state
    validated = validate_every(steps, state, fixed, interval=every, last=SETTINGS.steps)
    return list(validated), state


def test_validation_is_due_at_the_interval_and_at_the_last_step(unet, fixed):
    steps, _ = a_run(unet, fixed, every=4)
    assert [result.step for _, result in steps if result] == [4, 6]
    assert [step.step for step, _ in steps] == [1, 2, 3, 4, 5, 6]


def test_validation_changes_no_step_and_no_weight(unet, fixed):
    validated, one = a_run(unet, fixed, every=1)
    plain, other = a_run(unet, fixed, every=None)
    assert [float(s.loss) for s, _ in validated] == [float(s.loss) for s, _ in plain]
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.unet.training, "the result left the network as it trains"


def test_the_averaged_weights_edit(unet, fixed):
    steps, state = a_run(unet, fixed, every=6)
    averaged = deepcopy(unet)
    state.ema.copy_to(averaged)
    editor = replace(
        fixed.editor, backbone=replace(fixed.editor.backbone, unet=averaged)
    )
    examples = fixed.examples
    expected = editor.edit_tensors(examples.before, examples.instructions, seed=[0, 1])
    assert torch.equal(steps[-1][1].edits, expected)


def test_a_copied_input_keeps_all_and_changes_nothing(fixed):
    references = fixed.reference_results()
    copied = references["input copied"]
    assert copied.image_similarity == pytest.approx(1, abs=1e-5)
    assert copied.directional_similarity == pytest.approx(0, abs=1e-5)
    assert references["ground truth"].image_similarity < 1
    unknown = replace(fixed, examples=replace(fixed.examples, truth=None))
    assert [*unknown.reference_results()] == ["input copied"]


def test_only_process_0_validates(unet, fixed, monkeypatch):
    monkeypatch.setattr(validation, "rank", lambda: 1)
    steps, _ = a_run(unet, fixed, every=1)
    assert [result for _, result in steps] == [None] * 6
    assert distributed.rank() == 0
