"""CLIP scores equal transformers' own, and the filter keeps what the paper keeps."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity as cosine

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.clip_filter import (
    Scores,
    drop_reasons,
    keep_best,
    passes,
    score_generated,
    score_pairs,
)
from ip2p_lib.images import to_tensor
from ip2p_lib.rendering import Candidate, GeneratedPair
from ip2p_lib.triplets.record import Triplet
from tests.support.images import clip_reference, smooth_images

LIMITS = Filtering(image=0.75, text=0.2, direction=0.2, keep=2)


def columns(scores):
    return torch.stack([*vars(scores).values()])


def test_scores_are_the_cosines_of_the_released_code(clip, tiny_clip_folder):
    before, after = smooth_images(4, seed=1), smooth_images(4, seed=2)
    captions, edited = ["a cat", "a dog", "a cat", "the river"], ["a dog"] * 4
    _, image, text = clip_reference(tiny_clip_folder, before + after, captions + edited)
    i0, i1, t0, t1 = *image.chunk(2), *text.chunk(2)
    expected = Scores(
        cosine(i0, i1), cosine(i0, t0), cosine(i1, t1), cosine(i1 - i0, t1 - t0)
    )
    x, y = to_tensor(before), to_tensor(after)
    scores = score_pairs(clip, x, y, captions, edited)
    assert torch.allclose(columns(scores)[:3], columns(expected)[:3], atol=2e-3)
    assert torch.allclose(scores.direction, expected.direction, atol=0.01)
    alone = score_pairs(clip, x[3:], y[3:], captions[3:], edited[3:])
    assert torch.allclose(columns(alone), columns(scores)[:, 3:], atol=1e-5)
    with pytest.raises(ValueError, match=r"\[4, 4, 4, 1\]"):
        score_pairs(clip, x, y, captions, edited[3:])
    for texts in (("cats", edited), (captions, "dogs")):  # as long as there are pairs
        with pytest.raises(ValueError, match="captions is one text"):
            score_pairs(clip, x, y, *texts)


def test_direction_is_of_the_change_and_the_same_backwards(clip):
    x, y = to_tensor(smooth_images(2, seed=3)), to_tensor(smooth_images(2, seed=4))
    there = score_pairs(clip, x, y, ["a cat"] * 2, ["a dog"] * 2)
    back = score_pairs(clip, y, x, ["a dog"] * 2, ["a cat"] * 2)
    assert torch.allclose(there.direction, back.direction, atol=1e-5)
    unchanged = score_pairs(clip, x, x, ["a cat"] * 2, ["a dog"] * 2)
    assert torch.allclose(unchanged.image, torch.ones(2))
    assert torch.equal(unchanged.direction, torch.zeros(2))


def test_a_tree_is_scored_as_its_pairs_and_its_image_before_is_embedded_once(
    clip, monkeypatch
):
    before, other, *after = to_tensor(smooth_images(5))
    candidate = Candidate(Triplet("a cat", "make it a dog", "a dog"), 1, 0.5, 7.5)
    images = [(before, after[0]), (before, after[1]), (other, after[2])]
    pairs = [GeneratedPair(candidate, *both) for both in images]
    alone = torch.cat([columns(score_generated(clip, [pair])) for pair in pairs], 1)
    embed, counts = type(clip).embed_images, []

    def counted(self, images):
        counts.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(type(clip), "embed_images", counted)
    assert torch.allclose(columns(score_generated(clip, pairs)), alone, atol=1e-5)
    assert counts == [2 + 3]


def scores(*rows):
    return Scores(*torch.tensor(rows).T)


def test_each_threshold_drops_and_is_named():
    table = scores(
        (0.8, 0.3, 0.3, 0.25), (0.7, 0.3, 0.3, 0.3), (0.8, 0.1, 0.3, 0.3),
        (0.8, 0.3, 0.1, 0.1), (0.8, 0.3, 0.3, 0.1), (math.nan, 0.3, 0.3, 0.3),
    )  # fmt: skip
    assert passes(table, LIMITS).tolist() == [True] + [False] * 5
    exact = Filtering(image=0.5, text=0.25, direction=0.125)
    assert passes(scores((0.5, 0.25, 0.25, 0.125)), exact).item()
    assert drop_reasons(table, LIMITS) == [
        None,
        "image 0.700 < 0.750",
        "before 0.100 < 0.200",
        "after 0.100 < 0.200",
        "direction 0.100 < 0.200",
        "image nan < 0.750",
    ]
    assert (
        drop_reasons(table, replace(LIMITS, image=0.5))[4] == "direction 0.100 < 0.200"
    )


def test_of_each_triplet_the_best_by_direction_remain():
    table = scores(*[(0.8, 0.3, 0.3, d) for d in (0.3, 0.5, 0.1, 0.4, 0.9, 0.2)])
    groups = ["x", "x", "y", "x", "x", "y"]
    assert keep_best(table, groups, LIMITS) == [4, 1, 5]
    assert keep_best(table, groups, replace(LIMITS, keep=1)) == [4, 5]
    for keep in (-1, 0):
        with pytest.raises(ValueError, match="keep must be"):
            keep_best(table, groups, replace(LIMITS, keep=keep))
    for others in (groups[:5], [*groups, "z"]):
        with pytest.raises(ValueError, match=f"6 pairs, and triplets of {len(others)}"):
            keep_best(table, others, LIMITS)
