"""Random settings spread over their ranges, and depend on the triplet's texts alone."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Rendering
from ip2p_lib.rendering import (
    Candidate,
    LocalBlend,
    WordEdit,
    add_cross_attention_edit,
    draw_candidates,
    draw_trees,
)
from ip2p_lib.rendering.candidates import TAU_RANGE
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
    assert all(0 <= c.seed == int(float(c.seed)) for c in drawn), "JSON keeps them"


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_is_a_fraction(p):
    with pytest.raises(ValueError, match="fraction"):
        Candidate(CAT, 11, p, 7.5)


def test_candidates_depend_on_the_triplet_and_the_run_seed_only():
    def drawn(triplets, n, run_seed=0):
        return draw_candidates(triplets, n, run_seed, Rendering())

    both = drawn([CAT, HOUSE], 3)
    assert [c.triplet for c in both] == [CAT] * 3 + [HOUSE] * 3
    assert drawn([HOUSE, CAT], 3) == both[3:] + both[:3]
    assert drawn([HOUSE], 2) == both[3:5]
    assert drawn([CAT], 3, run_seed=1) != both[:3]


def test_candidates_of_a_tree_share_seed_and_scale_and_stratify_p():
    drawn = draw_trees([CAT, HOUSE], 3, 4, 0, Rendering())
    assert len(set(drawn)) == 24
    assert draw_trees([HOUSE], 3, 4, 0, Rendering()) == drawn[12:]
    for i in range(0, 24, 4):
        tree = drawn[i : i + 4]
        assert len({(c.triplet, c.seed, c.cfg_scale) for c in tree}) == 1
        assert [int((c.p - 0.1) / 0.2) for c in tree] == [0, 1, 2, 3]


def test_a_fraction_of_the_candidates_gets_a_word_edit():
    plain = draw_candidates([CAT, HOUSE], 1000, 0, Rendering())
    drawn = add_cross_attention_edit(plain, 0.3, 0)
    edited = [c for c in drawn if c.word_edit]
    assert 520 < len(edited) < 680  # 600 within four deviations
    assert [replace(c, word_edit=None) for c in drawn] == plain
    assert add_cross_attention_edit(plain, 0.0, 0) == plain
    assert all(c.word_edit for c in add_cross_attention_edit(plain, 1.0, 0))
    tau = torch.tensor([c.word_edit.tau for c in edited])
    assert TAU_RANGE[0] <= tau.min() < 0.21 and 0.79 < tau.max() <= TAU_RANGE[1]
    p = torch.tensor([c.p for c in edited])
    assert abs(torch.corrcoef(torch.stack([p, tau]))[0, 1]) < 0.16
    # Which candidates get one depends on their seeds and the run alone.
    assert add_cross_attention_edit(plain[::-1], 0.3, 0) == drawn[::-1]
    assert add_cross_attention_edit(plain[7:9], 0.3, 0) == drawn[7:9]
    assert add_cross_attention_edit(plain, 0.3, 1) != drawn


def test_the_longer_caption_is_the_source():
    removal = Triplet(HOUSE.edited_caption, "remove the horse", HOUSE.caption)
    for triplet, source in ((HOUSE, "after"), (removal, "before"), (CAT, "before")):
        plain = draw_candidates([triplet], 3, 0, Rendering())
        edited = add_cross_attention_edit(plain, 1.0, 0)
        assert {c.word_edit.source for c in edited} == {source}


def test_an_edit_is_stored_as_json():
    blend = LocalBlend(("a",), ("b",), 0.4)
    assert WordEdit("refine", 0.5, (("river", 2.0),), blend, "after").to_dict() == {
        "kind": "refine",
        "tau": 0.5,
        "weights": [["river", 2.0]],
        "blend": {"before": ["a"], "after": ["b"], "threshold": 0.4},
        "lead": "after",
    }
    assert WordEdit("replace").to_dict()["blend"] is None
