"""Candidates are drawn over their ranges, by what they are and not by where they stand.

Some of them also lend words: those of a known share, with the longer caption leading.
"""

import json
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Rendering
from ip2p_lib.rendering.candidates import TAUS, Candidate, draw_candidates, lend_words
from ip2p_lib.rendering.word_edits import LocalBlend, WordEdit
from ip2p_lib.triplets.record import Triplet
from tests.support.small_rendering import CAT, HOUSE


def test_candidates_spread_over_their_ranges():
    drawn = draw_candidates([CAT], 2000, 0, Rendering())
    p = torch.tensor([c.p for c in drawn])
    cfg = torch.tensor([c.cfg_scale for c in drawn])
    assert 0.1 <= p.min() < 0.11 and 0.89 < p.max() <= 0.9
    assert 7.5 <= cfg.min() < 7.6 and 14.9 < cfg.max() <= 15
    assert abs(p.mean() - 0.5) < 0.02 and abs(cfg.mean() - 11.25) < 0.2
    assert abs(torch.corrcoef(torch.stack([p, cfg]))[0, 1]) < 0.09
    assert len({c.seed for c in drawn}) == 2000


def test_candidates_hang_on_the_triplet_and_the_run_seed_only():
    def drawn(triplets, n, run_seed=0):
        return draw_candidates(triplets, n, run_seed, Rendering())

    both = drawn([CAT, HOUSE], 3)
    assert [c.triplet for c in both] == [CAT] * 3 + [HOUSE] * 3
    assert drawn([HOUSE, CAT], 3) == both[3:] + both[:3]
    assert drawn([HOUSE], 2) == both[3:5]
    assert drawn([CAT], 3, run_seed=1) != both[:3]


def test_a_seed_survives_a_reader_of_floats():
    seeds = [c.seed for c in draw_candidates([CAT, HOUSE], 50, 0, Rendering())]
    assert all(0 <= seed == int(float(seed)) for seed in seeds)


def test_a_share_of_the_candidates_lends_words():
    plain = draw_candidates([CAT, HOUSE], 1000, 0, Rendering())
    drawn = lend_words(plain, 0.3, 0)
    some = [c for c in drawn if c.words]
    assert 520 < len(some) < 680  # 600 within four deviations
    assert [replace(c, words=None) for c in drawn] == plain
    assert lend_words(plain, 0.0, 0) == plain
    assert all(c.words for c in lend_words(plain, 1.0, 0))
    tau = torch.tensor([c.words.tau for c in some])
    assert TAUS[0] <= tau.min() < 0.21 and 0.79 < tau.max() <= TAUS[1]
    p = torch.tensor([c.p for c in some])
    assert abs(torch.corrcoef(torch.stack([p, tau]))[0, 1]) < 0.16


def test_who_lends_words_hangs_on_the_seed_and_the_run():
    plain = draw_candidates([CAT, HOUSE], 20, 0, Rendering())
    drawn = lend_words(plain, 0.5, 0)
    assert lend_words(plain[::-1], 0.5, 0) == drawn[::-1]
    assert lend_words(plain[7:9], 0.5, 0) == drawn[7:9]
    assert lend_words(plain, 0.5, 1) != drawn


def test_the_longer_caption_leads():
    removal = Triplet(HOUSE.edited_caption, "remove the horse", HOUSE.caption)
    for triplet, lead in ((HOUSE, "after"), (removal, "before"), (CAT, "before")):
        plain = draw_candidates([triplet], 3, 0, Rendering())
        assert {c.words.lead for c in lend_words(plain, 1.0, 0)} == {lead}


def test_in_order_the_picture_that_lends_comes_first():
    blend = LocalBlend(("river",), ("horse",))
    words = WordEdit("refine", 0.5, blend=blend, lead="after")
    candidate = Candidate(HOUSE, 3, 0.5, 7.5, words)
    first = candidate.in_order()
    assert (first.triplet.caption, first.triplet.edited_caption) == (
        HOUSE.edited_caption,
        HOUSE.caption,
    )
    assert first.words.blend == LocalBlend(("horse",), ("river",))
    assert first.in_order() == first and first.words.turned() == words
    for same in (replace(candidate, words=None), replace(candidate, words=first.words)):
        assert same.in_order() == same


def test_who_leads_is_one_of_two():
    with pytest.raises(ValueError, match="lead is 'before' or 'after', not 'both'"):
        WordEdit("refine", lead="both")


def test_a_record_tells_of_the_words_that_were_lent():
    blend = LocalBlend(("river",), ("horse",), 0.4)
    for words in (
        WordEdit("refine", 0.5, (("river", 2.0),), blend, "after"),
        WordEdit("replace"),
    ):
        told = json.loads(json.dumps(words.facts()))
        assert told == words.facts() and WordEdit.of(told) == words
