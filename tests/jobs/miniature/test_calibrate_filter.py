"""Candidates are rendered, marked and written; what is read is what was measured."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import HELD_OUT, Rendering, preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.filtering.clip_filter import keep_best, score_pairs
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


def test_tasks_are_held_out_edits_that_captions_show():
    found = calibrate.tasks(20)
    assert calibrate.FIRST >= HELD_OUT + 10**6
    assert len({task.triplet for task in found}) == 20
    for task in found:
        assert task.triplet.caption != task.triplet.edited_caption
        assert task.triplet.instruction == task.edit.instruction


def test_a_row_holds_the_scores_and_the_verdict_of_its_candidate(scale, written):
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

    todo = calibrate.tasks(3)
    triplets = [task.triplet for task in todo]
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
    twice = [task for task in todo for _ in range(2)]
    scenes = [t.scene for t in twice], [t.edit.target for t in twice]
    said = verdicts(load_judge(), before, after, *scenes)
    rows = {(r["triplet"], r["p"]): r for r in json.loads(written.read_text())["rows"]}
    assert len(rows) == 6
    for i, candidate in enumerate(candidates):
        row = rows[i // 2, round(candidate.p, 4)]
        assert row["kind"] == twice[i].edit.kind
        assert row["cfg_scale"] == pytest.approx(candidate.cfg_scale, abs=1e-4)
        assert row["verdict"] == said[i]
        change = float((before[i] - after[i]).abs().mean()) / 2
        assert row["l1"] == pytest.approx(change, abs=2e-3)
        for name, score in vars(scores).items():
            assert row[name] == pytest.approx(float(score[i]), abs=2e-3)


def test_what_was_written_is_read_as_columns(written):
    found, facts = calibrate.read_marked(written)
    rows = json.loads(written.read_text())["rows"]
    assert facts["triplets"] == 3 and facts["seed"] == 0 and "commit" in facts
    assert 0.5 < facts["ceiling"] <= 1
    assert found.verdicts == [row["verdict"] for row in rows]
    assert set(found.verdicts) <= set(VERDICTS)
    assert found.p.tolist() == pytest.approx([row["p"] for row in rows])
    assert found.l1.tolist() == pytest.approx([row["l1"] for row in rows])
    assert found.good.tolist() == [row["verdict"] == "good" for row in rows]


def test_the_same_candidates_are_marked_with_words_lent(scale, written):
    from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

    marker = calibrate.Marker(load_clip(scale.clip), load_judge())
    backbone, todo = load_stable_diffusion(scale.backbone), calibrate.tasks(3)
    lent = calibrate.mark_candidates(backbone, marker, todo, SETTINGS, 0, lent=1)
    plain = json.loads(written.read_text())["rows"]
    same = ("triplet", "kind", "p", "cfg_scale")
    assert [[row[n] for n in same] for row in lent] == [
        [row[n] for n in same] for row in plain
    ]
    assert all(row["lent"] for row in lent) and not any(row["lent"] for row in plain)
    values = [[row["direction"] for row in rows] for rows in (lent, plain)]
    assert values[0] != values[1], "other pictures"


def test_lent_words_bring_pictures_closer_and_make_more_pairs_good():
    """As the shipped runs say: of a random network neither is true."""
    plain, lent = (calibrate.read_marked(p) for p in (calibrate.RESULT, calibrate.LENT))
    assert plain[1]["lent"] == 0 and lent[1]["lent"] == 1
    assert plain[0].triplets == lent[0].triplets
    assert plain[0].good.sum() < lent[0].good.sum()
    assert plain[0].l1.mean() > lent[0].l1.mean()


def test_of_the_best_of_four_more_are_good_than_of_two_that_are_both_kept():
    """As ``make_pairs`` chooses, by the shipped run."""
    four, limits = calibrate.read_marked(calibrate.LENT)[0], preset("miniature")
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
    found, _ = calibrate.read_marked(written)
    second = torch.tensor([number == 1 for number in found.triplets])
    part = found.where(second)
    assert part.triplets == [1, 1]
    assert part.p.tolist() == found.p[second].tolist()
    assert part.scores.image.tolist() == found.scores.image[second].tolist()
    assert part.kinds == [k for k, s in zip(found.kinds, second, strict=True) if s]
