"""Captions of the miniature world, read back."""

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.miniature.parsing import (
    Difference,
    count_changes,
    find_difference,
    names_difference,
    read_caption,
)
from ip2p_lib.miniature.world import KINDS, caption, sample_edit, sample_scene


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_caption_is_read_as_the_scene_it_describes(language: str):
    for seed in range(HELD_OUT, HELD_OUT + 500):
        scene = sample_scene(seed)
        said = read_caption(caption(scene, seed, language))
        objects = tuple((t.name, t.finish, t.accessory) for t in scene.things)
        assert (said.things, said.rest) == (objects, "")
        for name in ("place", "time", "weather", "medium"):
            assert getattr(said, name) == getattr(scene, name)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_edit_is_read_as_one_change(language: str):
    kinds = set()
    for seed in range(500):
        scene = sample_scene(seed)
        edit = sample_edit(scene, seed)
        texts = (caption(shown, seed, language) for shown in (scene, edit.target))
        before, after = map(read_caption, texts)
        assert count_changes(before, before) == 0
        assert count_changes(before, after) == 1, (before, after)
        kinds.add(edit.kind)
    assert kinds == set(KINDS)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("a cat in a city", "a cat in a city, a photo", 0),
        ("a cat beside a dog in a city", "a dog and a cat in a city", 0),
        ("a cat in a city", "a dog in a forest", 2),
        ("a red cat in a city", "a blue dog in a city", 2),
        ("a cat in a city", "a cat wearing a crown and a dog in a city", 2),
        ("a cat and a dog in a city", "a city", 4),
        ("a cat in a city", "a cat in a city singing", 1),
        ("猫", "a cat", 0),
    ],
)
def test_changes_are_counted(before: str, after: str, changes: int):
    assert count_changes(read_caption(before), read_caption(after)) == changes


def test_what_the_world_has_no_words_for_is_left_over():
    assert read_caption("a singing cat at night").rest == "singing"
    assert read_caption("").things == ()
    assert read_caption("a teddy bear").things == (("teddy bear", None, None),)
    assert read_caption("一只猫").rest == "一只"


@pytest.mark.parametrize("wording", ["train", "held-out"])
def test_the_grammar_names_what_it_changes(wording: str):
    triplets = grammar_triplets(HELD_OUT, 1000, wording)
    assert {t.language for t in triplets} == {"en", "zh"} and len(triplets) > 950
    for triplet in triplets:
        said = read_caption(triplet.caption), read_caption(triplet.edited_caption)
        assert find_difference(*said), triplet
        assert names_difference(triplet.instruction, *said), triplet


def test_the_instruction_of_another_edit_does_not():
    taken = others = 0
    for seed in range(1000):
        scene = sample_scene(seed)
        edit, other = sample_edit(scene, seed), sample_edit(scene, seed + 10**6)
        texts = caption(scene, seed), caption(edit.target, seed)
        if other.target != edit.target:
            others += 1
            taken += names_difference(other.instruction, *map(read_caption, texts))
    assert others > 900
    assert taken <= 2  # another crocodile, standing elsewhere, is the same in words


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("a cat in a city", "a cat in a city at night", ("time", "day", "night")),
        ("a cat in a city", "a cat and a dog in a city", ("name", None, "dog")),
        ("a cat and a dog in a city", "a cat in a city", ("name", "dog", None, "dog")),
        ("a red cat", "a cat", ("finish", "red", None, "cat")),
        ("戴皇冠的猫", "戴墨镜的猫", ("accessory", "crown", "sunglasses", "cat")),
    ],
)
def test_one_difference(before, after, difference):
    result = find_difference(read_caption(before), read_caption(after))
    assert result == Difference(*difference)


def test_no_difference_two_and_unknown_words_are_none():
    cat = read_caption("a cat in a city")
    for text in ("a cat in a city", "a dog in a forest", "a singing cat in a city"):
        assert find_difference(cat, read_caption(text)) is None


@pytest.mark.parametrize(
    ("instruction", "named"),
    [
        ("give the cat a crown", True),
        ("给猫戴上皇冠", True),
        ("give the dog a crown", False),  # another object
        ("a crown, please", False),  # whose?
        ("give the cat a bow", False),  # another value
        ("take the crown off the cat", False),  # the other way round
        ("crown the king of the house", False),
        ("a crown would suit the left one so well", True),
        ("a crown would suit the right one so well", False),
    ],
)
def test_an_instruction_names_whose_and_what(instruction: str, named: bool):
    said = "a cat and a dog in a city", "a cat wearing a crown and a dog in a city"
    assert names_difference(instruction, *map(read_caption, said)) is named


def test_what_stays_may_be_named_when_something_goes():
    said = read_caption("a cat and a dog"), read_caption("a cat")
    assert names_difference("leave only the cat", *said)
    assert names_difference("remove the dog", *said)
    assert not names_difference("remove the cat", *said)
    assert not names_difference("take the bow off the dog", *said)
    assert names_difference("no dogs allowed, the dog has to leave", *said)


def test_what_is_implied_is_understood_within_other_words():
    said = read_caption("a cat in a city"), read_caption("a cat in a city at sunset")
    assert names_difference("wait for the golden hour", *said)
    assert not names_difference("wait until the stars are out", *said)
