"""The miniature world: scenes, edits, captions and instructions."""

import hashlib
from dataclasses import astuple, replace

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.captions import article
from ip2p_lib.miniature.world import (
    KINDS,
    caption,
    possible_kinds,
    sample_edit,
    sample_scene,
)
from tests.support.small_judge import LONE


def test_scenes_and_edits_are_those_the_models_were_trained_on():
    scenes = [sample_scene(seed) for seed in range(400)]
    edits = [sample_edit(scene, seed) for seed, scene in enumerate(scenes)]
    targets = [(edit.kind, edit.language, astuple(edit.target)) for edit in edits]
    text = repr([[*map(astuple, scenes)], targets])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == "d132a5b6e3d715dc", "the shipped weights need the frozen world"


def test_wordings_are_those_the_models_were_trained_on():
    texts = []
    for seed in range(400):
        scene = sample_scene(seed)
        texts += [caption(scene, seed, language) for language in ("en", "zh")]
        texts += [
            sample_edit(scene, seed, wording=wording).instruction
            for wording in ("train", "held-out")
        ]
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    assert digest == "9ae143afbbf471fa", "the shipped weights need the frozen wordings"


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_its_kind_says_and_nothing_else(kind: str):
    changed = kind if kind in ("place", "time", "weather", "medium") else "things"
    edits = 0
    for seed in range(HELD_OUT, HELD_OUT + 60):
        scene = sample_scene(seed)
        if kind not in possible_kinds(scene):
            continue
        target = sample_edit(scene, seed, kind).target
        assert target != scene
        assert replace(target, **{changed: getattr(scene, changed)}) == scene
        edits += 1
    assert edits > 10


def test_captions_of_a_replacement_differ_in_the_noun_only():
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


@pytest.mark.parametrize(
    "arguments", [{"kind": "remove"}, {"kind": "rotate"}, {"wording": "test"}]
)
def test_impossible_edits_and_unknown_languages_are_refused(arguments):
    with pytest.raises(ValueError, match=r"possible|'train' or 'held-out'"):
        sample_edit(LONE, 0, **arguments)
    with pytest.raises(ValueError, match="'en' or 'zh'"):
        caption(LONE, 0, "fr")
