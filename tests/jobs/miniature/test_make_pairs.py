"""Tests of ``make_pairs``: which triplets get how many candidates."""

from collections import Counter

from ip2p_lib.config import preset
from ip2p_lib.triplets.record import Triplet
from jobs.miniature.make_pairs import CANDIDATES, draw_by_change

SNOWY = Triplet("a cat in the snow", "rain, please", "a cat in the rain", "en")
DOG = Triplet("a cat in the snow", "make it a dog", "a dog in the snow", "en")
TWO = Triplet("a cat in the snow", "a dog in rain", "a dog in the rain", "en")
SAME = Triplet("a cat in the snow", "keep it", "a cat in the snow", "en")


def test_new_objects_get_more_candidates_and_unclear_edits_none():
    settings = preset("miniature").rendering
    drawn = draw_by_change([SNOWY, DOG, TWO, SAME], settings)
    counts = Counter(candidate.triplet for candidate in drawn)
    assert counts == {SNOWY: CANDIDATES["weather"], DOG: CANDIDATES["name"]}
    assert len({candidate.seed for candidate in drawn}) == len(drawn)
