"""The phrasings of instructions and captions: enough, split well, refused if wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.instructions import could_ask
from ip2p_lib.miniature.parsing import find_difference, read_caption
from ip2p_lib.miniature.phrasings import (
    FIELDS,
    FORMS,
    load_captions,
    load_phrasebook,
)
from ip2p_lib.miniature.world import (
    KINDS,
    Edit,
    Scene,
    caption,
    sample_edit,
    sample_scene,
)


@pytest.mark.parametrize(("language", "least"), [("en", 40), ("zh", 15)])
def test_every_edit_type_has_many_phrasings_and_a_fifth_is_held_out(
    language: str, least: int
) -> None:
    assert FIELDS.keys() == {*KINDS, "take off"}
    for kind in FIELDS:
        phrasings = load_phrasebook(language).phrasings[kind]
        general = [phrasing for phrasing in phrasings if not phrasing.values]
        assert len(phrasings) >= least and len(general) >= 0.8 * least
        held_out = [phrasing.held_out for phrasing in phrasings]
        assert sum(held_out) / len(held_out) == pytest.approx(0.2, abs=0.03), kind
        for form in {*FORMS} - ({"wish"} if language == "zh" else set()):
            splits = {p.held_out for p in general if p.form == form}
            assert splits == {False, True}, (kind, form)


def test_captions_have_many_patterns_and_name_left_and_right() -> None:
    english, chinese = load_captions("en"), load_captions("zh")
    assert len(english.patterns) >= 12 and len(chinese.patterns) >= 6
    scenes = [s for s in map(sample_scene, range(600)) if len(s.things) == 2]
    texts = [caption(scene, seed) for seed, scene in enumerate(scenes)]
    share = sum("left" in text or "right" in text for text in texts) / len(texts)
    assert 0.4 < share < 0.7


def edit_of(scene: Scene, edit: Edit) -> tuple[str, dict[str, str]] | None:
    """Type and change of an edit, by the captions; None if an object only moves."""
    said = (read_caption(caption(shown)) for shown in (scene, edit.target))
    difference = find_difference(*said)
    return difference and difference.as_edit()


@pytest.mark.parametrize("wording", ["train", "held-out"])
def test_an_instruction_asks_for_its_edit_and_for_no_other(wording: str) -> None:
    """Nor is a phrasing of one split one of the other split, under another opener."""
    other_wording = {"train": "held-out", "held-out": "train"}[wording]
    for seed in range(HELD_OUT, HELD_OUT + 1000):
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed, wording=wording)
        own = edit_of(scene, edit)
        assert own and own[0] == edit.kind
        assert could_ask(edit.instruction, scene, *own, [wording]), edit
        assert not could_ask(edit.instruction, scene, *own, [other_wording]), edit
        other = edit_of(scene, sample_edit(scene, seed + 1))
        if other and other != own:
            assert not could_ask(edit.instruction, scene, *other), (edit, other)


def test_instructions_are_as_varied_as_people_are() -> None:
    for seed in range(40):
        scene = sample_scene(seed)
        for wording, least in (("train", 60), ("held-out", 20)):
            edits = [sample_edit(scene, i, "time", wording) for i in range(100)]
            assert len({edit.instruction for edit in edits}) > least


def test_an_object_of_two_may_be_named_by_its_side() -> None:
    scene = next(s for s in map(sample_scene, range(99)) if len(s.things) == 2)
    edits = [sample_edit(scene, seed, "remove") for seed in range(300)]
    sided = [e for e in edits if "left" in e.instruction or "right" in e.instruction]
    assert 60 < len(sided) < 200
    assert not [e for e in edits if e.instruction.endswith(" it")]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("[remove]", "plain"),
        ("[remove]", "rude  {x} sucks"),
        ("[remove]", "plain  do something to {y}"),
        ("[remove]", "plain  do something to {x"),
        ("[remove]", "plain  remove {x} for {n}"),
        ("[remove]", "plain  take {x} away"),  # a second time
        ("[fly]", "plain  do it"),
        ("[weather: hail]", "plain  do it"),
        ("[time: day < x]", "plain  do it"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused(
    header: str, line: str, tmp_path: Path
) -> None:
    text = f"[remove]\nplain  take {{x}} away\n{header}\n{line}\n"
    (tmp_path / "en.txt").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"en\.txt, line 4"):
        load_phrasebook("en", tmp_path)
