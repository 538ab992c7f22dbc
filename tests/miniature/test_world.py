"""The miniature world: scenes, edits, captions and instructions."""

import hashlib
from dataclasses import replace

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.parsing import count_changes, read_caption
from ip2p_lib.miniature.phrasings import (
    CAPTIONS,
    HELD_OUT_PHRASINGS,
    INSTRUCTIONS,
    INSTRUCTIONS_ZH,
)
from ip2p_lib.miniature.world import (
    KINDS,
    Scene,
    caption,
    possible_kinds,
    sample_edit,
    sample_scene,
)


def test_the_world_is_large_enough() -> None:
    assert len(words.OBJECTS) >= 100 and len(words.ART_SETS) == 4
    assert len(words.PLACES) >= 8 and len(words.TIMES) == 3
    assert len(words.MEDIA) >= 5 and len(words.FINISHES) >= 5
    assert len(words.ACCESSORIES) >= 3 and len(CAPTIONS) >= 6


def test_the_world_is_the_one_the_models_were_trained_on() -> None:
    scenes = [sample_scene(seed) for seed in range(200)]
    edits = [sample_edit(scene, seed) for seed, scene in enumerate(scenes)]
    en = [caption(scene, seed) for seed, scene in enumerate(scenes)]
    zh = [caption(edit.target, seed, "zh") for seed, edit in enumerate(edits)]
    text = repr([scenes, edits, en, zh])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == "f78c7c7f81747221", "the shipped weights need the frozen world"


def test_every_family_of_edits_has_phrasings_in_both_languages() -> None:
    assert set(KINDS) <= INSTRUCTIONS.keys() == INSTRUCTIONS_ZH.keys()
    assert all(len(set(lines)) >= 8 for lines in INSTRUCTIONS.values())
    assert all(len(set(lines)) >= 3 for lines in INSTRUCTIONS_ZH.values())


def _vocabulary(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


def test_held_out_phrasings_use_known_words_only() -> None:
    split = -HELD_OUT_PHRASINGS["en"]
    lists = INSTRUCTIONS.values()
    known = _vocabulary([line for lines in lists for line in lines[:split]])
    assert _vocabulary([line for lines in lists for line in lines[split:]]) <= known


def test_wordings_do_not_overlap() -> None:
    for seed in range(300):
        scene, sayings = sample_scene(seed), []
        for wording in ("train", "held-out"):
            edits = [sample_edit(scene, i, "time", wording) for i in range(40)]
            sayings.append({edit.instruction for edit in edits})
        assert not sayings[0] & sayings[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_its_kind_says_and_nothing_else(kind: str) -> None:
    changed = {
        "place": "place",
        "time": "time",
        "weather": "weather",
        "medium": "medium",
    }.get(kind, "things")
    seen = 0
    for seed in range(HELD_OUT, HELD_OUT + 60):
        scene = sample_scene(seed)
        if kind not in possible_kinds(scene):
            continue
        target = sample_edit(scene, seed, kind).target
        assert target != scene
        assert replace(target, **{changed: getattr(scene, changed)}) == scene
        seen += 1
    assert seen > 10


def test_captions_of_an_edit_differ_in_one_thing() -> None:
    for seed in range(400):
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed)
        for language in ("en", "zh"):
            texts = [caption(s, seed, language) for s in (scene, edit.target)]
            before, after = map(read_caption, texts)
            assert not before.rest and not after.rest, texts
            # A caption may leave out what is usual, such as clear weather.
            assert count_changes(before, after) <= 1, texts


def test_the_same_seed_gives_the_same_scene_and_edit() -> None:
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)
    scene = sample_scene(5)
    assert sample_edit(scene, 9) == sample_edit(scene, 9)


def _bare() -> Scene:
    scene = next(s for s in map(sample_scene, range(99)) if len(s.things) == 1)
    return replace(scene, medium="photo")


@pytest.mark.parametrize(
    ("arguments", "words_of_help"),
    [
        ({"kind": "remove"}, "Choose one of"),
        ({"kind": "rotate"}, "not possible here"),
        ({"wording": "test"}, "'train' or 'held-out'"),
    ],
)
def test_impossible_edits_are_refused(arguments: dict, words_of_help: str) -> None:
    with pytest.raises(ValueError, match=words_of_help):
        sample_edit(_bare(), 0, **arguments)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="'en' or 'zh'"):
        caption(_bare(), 0, "fr")
