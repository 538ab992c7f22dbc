"""CLIP scores equal transformers' own, and the filter keeps what the paper keeps."""

import math
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.filtering.clip_filter import (
    Scores,
    drop_reasons,
    keep_best,
    passes,
    score_generated,
    score_pairs,
    thresholds_by_score,
)
from ip2p_lib.images import to_tensor
from ip2p_lib.rendering import Candidate, GeneratedPair
from ip2p_lib.triplets.record import Triplet
from tests.support.clip import clip_reference, smooth_images

LIMITS = Filtering(image=0.75, text=0.2, direction=0.2, keep=2)


@pytest.fixture(scope="module")
def clip(tiny_clip_folder):
    return load_clip(tiny_clip_folder, device="cpu")


def test_scores_are_the_cosines_of_the_released_code(clip, tiny_clip_folder):
    before, after = smooth_images(4, seed=1), smooth_images(4, seed=2)
    captions, edited = ["a cat", "a dog", "a cat", "the river"], ["a dog"] * 4
    _, image, text = clip_reference(tiny_clip_folder, before + after, captions + edited)
    i0, i1, t0, t1 = *image.double().chunk(2), *text.double().chunk(2)
    cosine = torch.nn.functional.cosine_similarity
    scores = score_pairs(clip, to_tensor(before), to_tensor(after), captions, edited)
    assert torch.allclose(scores.image.double(), cosine(i0, i1), atol=2e-3)
    assert torch.allclose(scores.before.double(), cosine(i0, t0), atol=2e-3)
    assert torch.allclose(scores.after.double(), cosine(i1, t1), atol=2e-3)
    assert torch.allclose(
        scores.direction.double(), cosine(i1 - i0, t1 - t0), atol=0.01
    )


def test_an_unchanged_picture_is_all_image_and_no_direction(clip):
    x = to_tensor(smooth_images(2))
    scores = score_pairs(clip, x, x, ["a cat"] * 2, ["a dog"] * 2)
    assert torch.allclose(scores.image, torch.ones(2))
    assert torch.equal(scores.direction, torch.zeros(2))


def test_direction_does_not_mind_running_the_edit_backwards(clip):
    x, y = to_tensor(smooth_images(2, seed=3)), to_tensor(smooth_images(2, seed=4))
    there = score_pairs(clip, x, y, ["a cat"] * 2, ["a dog"] * 2)
    back = score_pairs(clip, y, x, ["a dog"] * 2, ["a cat"] * 2)
    assert torch.allclose(there.direction, back.direction, atol=1e-5)


def test_a_pairs_scores_do_not_depend_on_its_batch(clip):
    x, y = to_tensor(smooth_images(5, seed=5)), to_tensor(smooth_images(5, seed=6))
    texts = ["a cat", "a dog", "a cat", "a tree", "a long photo of the river"]
    edited = texts[::-1]
    whole = score_pairs(clip, x, y, texts, edited)
    alone = score_pairs(clip, x[3:4], y[3:4], texts[3:4], edited[3:4])
    for name in ("image", "before", "after", "direction"):
        together = getattr(whole, name)[3]
        assert torch.allclose(together, getattr(alone, name)[0], atol=1e-5)


def test_uneven_batches_are_refused(clip):
    x = to_tensor(smooth_images(2))
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 1\]"):
        score_pairs(clip, x, x, ["a", "b"], ["c"])


def test_a_tree_is_scored_as_its_pairs_and_its_image_before_is_embedded_once(
    clip, monkeypatch
):
    before, other, *after = to_tensor(smooth_images(5))
    candidate = Candidate(Triplet("a cat", "make it a dog", "a dog"), 1, 0.5, 7.5)
    images = [(before, after[0]), (before, after[1]), (other, after[2])]
    pairs = [GeneratedPair(candidate, *both) for both in images]
    alone = [vars(score_generated(clip, [pair])) for pair in pairs]
    embed, counts = type(clip).embed_images, []

    def counted(self, images):
        counts.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(type(clip), "embed_images", counted)
    scores = score_generated(clip, pairs)
    assert counts == [2 + 3]
    for name, column in vars(scores).items():
        expected = [float(row[name]) for row in alone]
        assert column.tolist() == pytest.approx(expected, abs=1e-5)


def scores(*rows):
    return Scores(*torch.tensor(rows).T)


GOOD, NAN = (0.8, 0.3, 0.3, 0.25), (math.nan, 0.3, 0.3, 0.3)
TABLE = scores(
    GOOD, (0.7, 0.3, 0.3, 0.3), (0.8, 0.1, 0.3, 0.3), (0.8, 0.3, 0.1, 0.3),
    (0.8, 0.3, 0.3, 0.1), NAN,
)  # fmt: skip


def test_each_threshold_drops_and_is_named():
    assert passes(TABLE, LIMITS).tolist() == [True] + [False] * 5
    assert drop_reasons(TABLE, LIMITS) == [
        None,
        "image 0.700 < 0.750",
        "before 0.100 < 0.200",
        "after 0.100 < 0.200",
        "direction 0.100 < 0.200",
        "image nan < 0.750",
    ]


def test_a_threshold_itself_passes():
    exact = Filtering(image=0.5, text=0.25, direction=0.125, keep=1)
    assert passes(scores((0.5, 0.25, 0.25, 0.125)), exact).item()


def test_the_best_of_each_triplet_are_kept_by_direction():
    table = scores(*[(0.8, 0.3, 0.3, d) for d in (0.3, 0.5, 0.1, 0.4, 0.9, 0.2)])
    groups = ["x", "x", "y", "x", "x", "y"]
    assert keep_best(table, groups, LIMITS) == [4, 1, 5]
    assert keep_best(table, groups, replace(LIMITS, keep=1)) == [4, 5]


def test_every_score_has_a_threshold():
    limits = thresholds_by_score(LIMITS)
    assert list(limits) == list(vars(TABLE))
    assert limits["before"] == limits["after"] == LIMITS.text
