"""Candidates are generated, labelled and written, and read back as measured."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import HELD_OUT, Rendering, preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.filtering.clip_filter import keep_best, score_pairs
from ip2p_lib.miniature.judge.calibration import (
    CROSS_ATTENTION,
    FIRST,
    SELF_ATTENTION,
    held_out_edits,
    read_candidates,
)
from ip2p_lib.miniature.judge.model import load_judge
from ip2p_lib.miniature.judge.verdicts import VERDICTS, verdicts
from ip2p_lib.rendering import draw_candidates, generate_pairs
from jobs.miniature import calibrate_filter as calibrate
from jobs.miniature import make_pairs

SETTINGS = Rendering(
    steps=2, candidates=2, batch_size=3, sampler="ddim", cfg_min=2.0, cfg_max=4.0
)


@pytest.fixture(scope="module")
def scale():
    return replace(preset("miniature"), rendering=SETTINGS)


@pytest.fixture(scope="module")
def written(scale, tmp_path_factory):
    """The file of the command, run on three triplets."""
    path = tmp_path_factory.mktemp("calibrate") / "calibration.json"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--triplets", "3", "--candidates", "2", "--out", str(path)]
        patch.setattr(sys, "argv", ["calibrate", *arguments])
        patch.setattr(calibrate, "preset", lambda _: scale)
        calibrate.main()
    return path


def test_they_are_held_out_edits_that_captions_show():
    found = held_out_edits(20)
    assert FIRST >= HELD_OUT + 10**6
    assert len({edit.triplet for edit in found}) == 20
    for edit in found:
        assert edit.triplet.caption != edit.triplet.edited_caption
        assert edit.triplet.instruction == edit.edit.instruction


def test_a_row_holds_the_scores_and_the_verdict_of_its_candidate(scale, written):
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

    todo = held_out_edits(3)
    triplets = [edit.triplet for edit in todo]
    candidates = draw_candidates(triplets, 2, 0, SETTINGS)
    options = {"steps": 2, "batch_size": 2, "sampler": "ddim"}
    batches = generate_pairs(
        load_stable_diffusion(scale.backbone), candidates, **options
    )
    made = [pair for batch in batches for pair in batch]
    before, after = (
        torch.stack([getattr(p, name) for p in made]) for name in ("before", "after")
    )
    scores = score_pairs(
        load_clip(scale.clip),
        before,
        after,
        [c.triplet.caption for c in candidates],
        [c.triplet.edited_caption for c in candidates],
    )
    twice = [edit for edit in todo for _ in range(2)]
    scenes = [t.scene for t in twice], [t.edit.target for t in twice]
    said = verdicts(load_judge(), before, after, *scenes)
    rows = {(r["triplet"], r["p"]): r for r in json.loads(written.read_text())["rows"]}
    assert len(rows) == 6
    for i, candidate in enumerate(candidates):
        row = rows[i // 2, round(candidate.p, 4)]
        assert row["edit_type"] == twice[i].edit.kind
        assert row["cfg_scale"] == pytest.approx(candidate.cfg_scale, abs=1e-4)
        assert row["verdict"] == said[i]
        change = float((before[i] - after[i]).abs().mean()) / 2
        assert row["l1"] == pytest.approx(change, abs=2e-3)
        for name, score in vars(scores).items():
            assert row[name] == pytest.approx(float(score[i]), abs=2e-3)


def test_what_was_written_is_read_as_columns(written):
    found, facts = read_candidates(written)
    rows = json.loads(written.read_text())["rows"]
    assert facts["triplets"] == 3 and facts["seed"] == 0 and "commit" in facts
    assert 0.5 < facts["ceiling"] <= 1
    assert found.verdicts == [row["verdict"] for row in rows]
    assert set(found.verdicts) <= set(VERDICTS)
    assert found.p.tolist() == pytest.approx([row["p"] for row in rows])
    assert found.l1.tolist() == pytest.approx([row["l1"] for row in rows])
    assert found.good.tolist() == [row["verdict"] == "good" for row in rows]


def test_the_same_candidates_are_labelled_with_cross_attention_injected(scale, written):
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

    marker = calibrate.Labeller(load_clip(scale.clip), load_judge())
    backbone, todo = load_stable_diffusion(scale.backbone), held_out_edits(3)
    lent = calibrate.label_candidates(backbone, marker, todo, SETTINGS, 0, 1)
    plain = json.loads(written.read_text())["rows"]
    same = ("triplet", "edit_type", "p", "cfg_scale")
    assert [[row[n] for n in same] for row in lent] == [
        [row[n] for n in same] for row in plain
    ]
    assert all(row["cross_attention"] for row in lent) and not any(
        row["cross_attention"] for row in plain
    )
    values = [[row["direction"] for row in rows] for rows in (lent, plain)]
    assert values[0] != values[1], "other images"


def test_cross_attention_injection_brings_images_closer_and_makes_more_pairs_good():
    """As the shipped runs say: of a random network neither is true."""
    plain, lent = (read_candidates(p) for p in (SELF_ATTENTION, CROSS_ATTENTION))
    assert plain[1]["cross_attention"] == 0 and lent[1]["cross_attention"] == 1
    assert plain[0].triplets == lent[0].triplets
    assert plain[0].good.sum() < lent[0].good.sum()
    assert plain[0].l1.mean() > lent[0].l1.mean()


def test_of_the_best_of_four_more_are_good_than_of_two_that_are_both_kept():
    """As ``make_pairs`` chooses, by the shipped run."""
    four, limits = read_candidates(CROSS_ATTENTION)[0], preset("miniature")
    limits = replace(limits.filtering, keep=make_pairs.KEPT)
    places = [four.triplets[:row].count(n) for row, n in enumerate(four.triplets)]
    assert max(places) + 1 == make_pairs.CANDIDATES
    two = four.where(torch.tensor(places) < 2)
    shares = [
        found.good[keep_best(found.scores, found.triplets, limits)].double().mean()
        for found in (two, four)
    ]
    assert shares[1] > shares[0] + 0.03


def test_some_candidates_keep_their_columns_together(written):
    found, _ = read_candidates(written)
    second = torch.tensor([number == 1 for number in found.triplets])
    part = found.where(second)
    assert part.triplets == [1, 1]
    assert part.p.tolist() == found.p[second].tolist()
    assert part.scores.image.tolist() == found.scores.image[second].tolist()
    assert part.edit_types == [
        k for k, s in zip(found.edit_types, second, strict=True) if s
    ]
