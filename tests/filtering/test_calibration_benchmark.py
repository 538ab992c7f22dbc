"""Candidates are generated, labelled and written, and read back as measured."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.filtering import calibration as calibrate
from ip2p_lib.config import HELD_OUT, Rendering, preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.filtering.clip_filter import score_pairs
from ip2p_lib.miniature.judge.calibration import FIRST, held_out_edits, read_candidates
from ip2p_lib.miniature.judge.model import load_judge
from ip2p_lib.miniature.judge.verdicts import VERDICTS, verdicts
from ip2p_lib.rendering import draw_candidates, generate_pairs

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
    edits = held_out_edits(20)
    assert FIRST >= HELD_OUT + 10**6
    assert len({edit.triplet for edit in edits}) == 20
    for edit in edits:
        assert edit.triplet.caption != edit.triplet.edited_caption
        assert edit.triplet.instruction == edit.edit.instruction


def test_a_row_holds_the_scores_and_the_verdict_of_its_candidate(scale, written):
    edits = [edit for edit in held_out_edits(3) for _ in range(2)]
    candidates = draw_candidates([e.triplet for e in edits[::2]], 2, 0, SETTINGS)
    backbone = load_stable_diffusion(scale.backbone)
    options = {"steps": 2, "batch_size": 2, "sampler": "ddim"}
    batches = generate_pairs(backbone, candidates, **options)
    pairs = [pair for batch in batches for pair in batch]
    before = torch.stack([pair.before for pair in pairs])
    after = torch.stack([pair.after for pair in pairs])
    captions = [edit.triplet.caption for edit in edits]
    edited = [edit.triplet.edited_caption for edit in edits]
    scores = score_pairs(load_clip(scale.clip), before, after, captions, edited)
    scenes = [edit.scene for edit in edits], [edit.edit.target for edit in edits]
    expected = verdicts(load_judge(), before, after, *scenes)
    rows = {(r["triplet"], r["p"]): r for r in json.loads(written.read_text())["rows"]}
    assert len(rows) == 6
    for i, candidate in enumerate(candidates):
        row = rows[i // 2, round(candidate.p, 4)]
        assert row["edit_type"] == edits[i].edit.kind
        assert row["cfg_scale"] == pytest.approx(candidate.cfg_scale, abs=1e-4)
        assert row["verdict"] == expected[i]
        change = float((before[i] - after[i]).abs().mean()) / 2
        assert row["l1"] == pytest.approx(change, abs=2e-3)
        for name, score in vars(scores).items():
            assert row[name] == pytest.approx(float(score[i]), abs=2e-3)


def test_what_was_written_is_read_as_columns(written):
    candidates, facts = read_candidates(written)
    rows = json.loads(written.read_text())["rows"]
    assert facts["triplets"] == 3 and facts["seed"] == 0 and "commit" in facts
    assert 0.5 < facts["ceiling"] <= 1
    assert set(candidates.verdicts) <= set(VERDICTS)
    second = torch.tensor([number == 1 for number in candidates.triplets])
    some = candidates.where(second), [row for row in rows if row["triplet"] == 1]
    for part, part_rows in ((candidates, rows), some):
        assert part.triplets == [row["triplet"] for row in part_rows]
        assert part.edit_types == [row["edit_type"] for row in part_rows]
        assert part.verdicts == [row["verdict"] for row in part_rows]
        assert part.good.tolist() == [row["verdict"] == "good" for row in part_rows]
        columns = {"p": part.p, "l1": part.l1, "image": part.scores.image}
        for name, column in columns.items():
            assert column.tolist() == pytest.approx([row[name] for row in part_rows])


def test_the_same_candidates_are_labelled_with_cross_attention_injected(scale, written):
    labeller = calibrate.Labeller(load_clip(scale.clip), load_judge())
    backbone, edits = load_stable_diffusion(scale.backbone), held_out_edits(3)
    injected = calibrate.label_candidates(backbone, labeller, edits, SETTINGS, 0, 1)
    plain = json.loads(written.read_text())["rows"]
    for one, other in zip(injected, plain, strict=True):
        for name in ("triplet", "edit_type", "p", "cfg_scale"):
            assert one[name] == other[name]
        assert one["cross_attention"] and not other["cross_attention"]
    images = [[row["direction"] for row in rows] for rows in (injected, plain)]
    assert images[0] != images[1], "other images"
