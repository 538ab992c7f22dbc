"""Captions of the miniature world, read back."""

from __future__ import annotations

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.parsing import count_changes, read_caption
from ip2p_lib.miniature.world import KINDS, caption, sample_edit, sample_scene


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_caption_is_read_as_the_scene_it_describes(language: str) -> None:
    for seed in range(HELD_OUT, HELD_OUT + 500):
        scene = sample_scene(seed)
        said = read_caption(caption(scene, seed, language))
        things = tuple((t.name, t.finish, t.accessory) for t in scene.things)
        assert said.things == things
        seen = (said.place, said.time, said.weather, said.medium, said.rest)
        assert seen == (scene.place, scene.time, scene.weather, scene.medium, "")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_edit_is_read_as_one_change(language: str) -> None:
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
def test_changes_are_counted(before: str, after: str, changes: int) -> None:
    assert count_changes(read_caption(before), read_caption(after)) == changes


def test_what_the_world_has_no_words_for_is_left_over() -> None:
    assert read_caption("a singing cat at night").rest == "singing"
    assert read_caption("").things == ()
    assert read_caption("a teddy bear").things == (("teddy bear", None, None),)
    assert read_caption("一只猫").rest == "一只"
