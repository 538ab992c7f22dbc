"""Both pictures of a pair are cut and mirrored alike, and everywhere equally often."""

import math

import pytest
import torch

from ip2p_lib import rng
from ip2p_lib.images import ImageError, crop_and_flip

BEFORE = torch.arange(2 * 3 * 10 * 14).float().reshape(2, 3, 10, 14)


def test_both_pictures_of_a_pair_are_cut_and_mirrored_alike():
    u = rng.uniform(rng.key("crop"), torch.arange(2), (3,))
    before, after = crop_and_flip(BEFORE, -BEFORE, 8, u=u)
    assert before.shape == (2, 3, 8, 8)
    assert torch.equal(after, -before)


@pytest.mark.parametrize("flip", [0.0, 0.49, 0.5, 0.99])
@pytest.mark.parametrize(("u_top", "top"), [(0.0, 0), (0.34, 1), (0.999, 2)])
@pytest.mark.parametrize(("u_left", "left"), [(0.0, 0), (0.5, 3), (0.999, 6)])
def test_the_numbers_choose_top_left_and_flip(u_top, top, u_left, left, flip):
    u = torch.tensor([[u_top, u_left, flip], [0.0, 0.0, 0.9]])
    cut, _ = crop_and_flip(BEFORE, BEFORE, 8, u=u)
    expected = BEFORE[0, :, top : top + 8, left : left + 8]
    assert torch.equal(cut[0], expected.flip(-1) if flip < 0.5 else expected)
    assert torch.equal(cut[1], BEFORE[1, :, :8, :8])


def test_every_place_is_cut_equally_often():
    n = 6000
    u = rng.uniform(rng.key("crop"), torch.arange(n), (3,))
    places = torch.arange(12.0).reshape(1, 1, 3, 4).expand(n, 3, 3, 4)
    cut, _ = crop_and_flip(places, places, 1, u=u)
    counts = cut[:, 0].flatten().long().bincount(minlength=12)
    assert ((counts - n / 12).abs() < 4 * math.sqrt(n / 12)).all()


@pytest.mark.parametrize(
    "other", [torch.zeros(2, 3, 10, 13), torch.zeros(1, 3, 10, 14)]
)
def test_pictures_of_a_pair_have_one_shape(other):
    with pytest.raises(ImageError, match="Cannot cut 8 x 8"):
        crop_and_flip(BEFORE, other, 8, u=torch.zeros(2, 3))


def test_a_square_larger_than_the_picture_is_refused():
    with pytest.raises(ImageError, match="Cannot cut 12 x 12"):
        crop_and_flip(BEFORE, BEFORE, 12, u=torch.zeros(2, 3))
