"""The miniature world: scenes, edits, captions and instructions."""

import hashlib
from dataclasses import astuple, replace

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.captions import article
from ip2p_lib.miniature.parsing import count_changes, read_caption
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
    assert len(words.MEDIA) >= 5 and len(words.MATERIALS_AND_COLOURS) >= 5
    assert len(words.ACCESSORIES) >= 3


def test_scenes_and_edits_are_those_the_models_were_trained_on() -> None:
    scenes = [sample_scene(seed) for seed in range(400)]
    edits = [sample_edit(scene, seed) for seed, scene in enumerate(scenes)]
    targets = [(edit.kind, edit.language, astuple(edit.target)) for edit in edits]
    text = repr([[*map(astuple, scenes)], targets])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == "d132a5b6e3d715dc", "the shipped weights need the frozen world"


def test_wordings_are_those_the_models_were_trained_on() -> None:
    texts = []
    for seed in range(400):
        scene = sample_scene(seed)
        texts += [caption(scene, seed, language) for language in ("en", "zh")]
        texts += [
            sample_edit(scene, seed, wording=wording).instruction
            for wording in ("train", "held-out")
        ]
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    assert digest == "38992609bbc09ba2", "the shipped weights need the frozen wordings"


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


def test_captions_of_a_replacement_differ_in_the_noun_only() -> None:
    """Left and right, order and synonyms stay: what attention maps are injected by."""
    with_sides = 0
    for seed in range(600):
        scene = sample_scene(seed)
        target = sample_edit(scene, seed, "replace").target
        (pair,) = (
            {*t} for t in zip(scene.things, target.things, strict=True) if len({*t}) > 1
        )
        old = next(t for t in scene.things if t in pair)
        new = next(t for t in target.things if t in pair)
        before, after = caption(scene, seed), caption(target, seed)
        with_sides += " on the " in before and len(scene.things) == 2
        if not old.finish:
            assert before.replace(article(old.name), article(new.name)) == after
        texts = [caption(shown, seed, "zh") for shown in (scene, target)]
        nouns = [words.OBJECTS[thing.name][1] for thing in (old, new)]
        assert texts[0].replace(*nouns) == texts[1]
    assert with_sides > 50


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
