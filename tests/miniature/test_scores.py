"""Scores of edits: the ground truth is done and kept, a copy is kept, a mix neither."""

import pytest
import torch

from ip2p_lib.miniature.judge import load_judge
from ip2p_lib.miniature.judge.readings import ANSWERS, labels
from ip2p_lib.miniature.judge.scores import EditScores, read_answers, score_edits
from ip2p_lib.miniature.render import encode, render
from ip2p_lib.miniature.world import sample_edit, sample_scene

SEEDS = range(10**9, 10**9 + 24)


@pytest.fixture(scope="module")
def judge():
    return load_judge(device="cpu")


@pytest.fixture(scope="module")
def edits():
    """Scenes, targets, and both rendered."""
    scenes = [sample_scene(seed) for seed in SEEDS]
    pairs = zip(scenes, SEEDS, strict=True)
    targets = [sample_edit(scene, seed).target for scene, seed in pairs]
    return scenes, targets, render(scenes), render(targets)


def score(judge, edits, after: torch.Tensor) -> EditScores:
    scenes, targets, before, ground_truth = edits
    codes = encode(scenes), encode(targets)
    return score_edits(judge, after, before, ground_truth, codes, ground_truth)


def test_the_judge_reads_what_is_rendered(judge, edits):
    scenes, _, before, _ = edits
    answers, right = read_answers(judge, before), labels(encode(scenes))
    for name in ANSWERS:
        if not name.endswith("finish"):  # some media hide it
            assert (answers[name] == right[name]).float().mean() >= 0.9, name


def test_the_ground_truth_is_done_and_keeps_everything(judge, edits):
    scores = score(judge, edits, edits[3])
    assert scores.kept.all()
    assert scores.done.float().mean() >= 0.9
    assert torch.equal(scores.both, scores.done & scores.kept)
    for errors in (scores.background_error, scores.edit_region_error):
        assert errors.nan_to_num().abs().max() < 6e-3  # half of what counts as equal


def test_a_copy_of_the_input_keeps_all_and_does_nothing(judge, edits):
    scores = score(judge, edits, edits[2])
    assert scores.done.float().mean() <= 0.1
    assert scores.kept.float().mean() >= 0.9
    assert scores.background_error.nan_to_num().abs().max() < 1e-6
    assert scores.edit_region_error.min() > 0
    # Another scene's image is not kept.
    assert score(judge, edits, edits[3].roll(1, 0)).kept.float().mean() <= 0.1


def test_errors_are_means_over_their_part_of_the_image(judge, edits):
    """One grey level everywhere: the background error is what it is worth there."""
    _, _, before, ground_truth = edits
    off = (ground_truth + 0.2).clamp(-1, 1)
    scores = score(judge, edits, off)
    for i, error in enumerate(scores.background_error.tolist()):
        same = (ground_truth[i] - before[i]).abs().amax(0) <= 1.5 / 127.5
        if error == error:
            difference = (off[i] - before[i]).abs().mean(0)[same].mean() / 2
            assert error == pytest.approx(float(difference), abs=1e-5)


def test_arguments_of_different_lengths_are_refused(judge, edits):
    with pytest.raises(ValueError, match="one of each"):
        score(judge, edits, edits[3][:2])
