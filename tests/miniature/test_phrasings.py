"""The phrasings of instructions and captions: well formed, enough, and split well."""

import re

import pytest

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.instructions import could_ask
from ip2p_lib.miniature.parsing import find_difference, read_caption
from ip2p_lib.miniature.phrasings import (
    LANGUAGES,
    Phrasebook,
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

FORMS = ("plain", "polite", "terse", "noun", "question", "wish", "implied")
# The values that words and headers may speak of.
TABLES: dict[str, dict] = {
    "object": words.OBJECTS,
    "side": {"left": None, "right": None},
    "place": words.PLACES,
    "time": words.TIMES,
    "weather": words.WEATHERS,
    "medium": words.MEDIA,
    "material": words.MATERIALS,
    "colour": words.COLOURS,
    "accessory": words.ACCESSORIES,
    "take off": words.ACCESSORIES,
}
# The fields of each edit type's phrasings, beside the words of its new value.
FIELDS = {
    "replace": {"x", "it", "name", "o", "n"},
    "add": {"x", "n", "side"},
    "remove": {"x", "name", "o"},
    **{kind: {"all"} for kind in ("place", "time", "weather", "medium")},
    **{kind: {"x", "it", "name"} for kind in ("material", "colour", "accessory")},
    "take off": {"x", "it", "name"},
}


@pytest.mark.parametrize(("language", "least"), [("en", 40), ("zh", 15)])
def test_every_edit_type_has_many_phrasings_and_a_fifth_is_held_out(
    language: str, least: int
):
    assert FIELDS.keys() == {*KINDS, "take off"}
    for kind in FIELDS:
        lines = load_phrasebook(language).phrasings[kind]
        general = [line for line in lines if not line.values]
        assert len(lines) >= least and len(general) >= 0.8 * least
        held_out = [line.held_out for line in lines]
        assert sum(held_out) / len(held_out) == pytest.approx(0.2, abs=0.03), kind
        for form in {*FORMS} - ({"wish"} if language == "zh" else set()):
            splits = {p.held_out for p in general if p.form == form}
            assert splits == {False, True}, (kind, form)


def edit_of(scene: Scene, edit: Edit) -> tuple[str, dict[str, str]] | None:
    """Type and change of an edit, by the captions; None if an object only moves."""
    said = (read_caption(caption(shown)) for shown in (scene, edit.target))
    difference = find_difference(*said)
    return difference and difference.as_edit()


@pytest.mark.parametrize("wording", ["train", "held-out"])
def test_an_instruction_asks_for_its_edit_and_for_no_other(wording: str):
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_line_of_the_shipped_files_can_be_used(language: str):
    book, captions = Phrasebook(language), load_captions.__wrapped__(language)
    for (table, form), synonyms in book.words.items():
        assert synonyms.keys() <= TABLES[table].keys(), (table, form)
        assert all(word == word.strip() != "" for w in synonyms.values() for word in w)
    assert book.phrasings.keys() == {*FIELDS, "openers"}
    for kind, lines in book.phrasings.items():
        assert len(set(lines)) == len(lines), f"a line stands in [{kind}] twice"
        for line in lines:
            values = {*line.values} or {*TABLES.get(kind, ())}
            assert line.form in FORMS, line
            assert {*values, line.before} <= {"", *TABLES.get(kind, ())}, line
            forms = {
                f
                for (t, f), w in book.words.items()
                if (t, values - {*w}) == (kind, set())
            }
            assert line.fields <= FIELDS.get(kind, set()) | forms, line
            assert {*line.text.format_map(dict.fromkeys(line.fields, ""))}.isdisjoint(
                "{}"
            )
            assert line.text.count("...") == (kind == "openers"), line
    assert book.references.keys() >= {
        ("x", 1),
        ("x", 2),
        ("it", 1),
        ("all", 1),
        ("all", 2),
    }
    for pattern in captions.patterns:
        assert sorted("".join(re.findall(r"\{(\w)\}", " ".join(pattern)))) == [*"moptw"]
    assert sum(share for share, _, _ in captions.objects) > 0
