"""Edits select the tokens to blend by, and refuse words that a caption lacks."""

import pytest

from ip2p_lib.rendering import LocalBlend, WordEdit
from ip2p_lib.rendering.token_alignment import find_tokens
from ip2p_lib.rendering.word_edits import build_edit_tensors

CAT, DOG = "a photo of the cat", "a photo of the dog"
HATS = "a photo of the cat with hats"


def build_one(backbone, edit, before=CAT, after=DOG):
    return build_edit_tensors(backbone, [edit], [before], [after])


@pytest.mark.parametrize(
    ("blend", "before", "after"),
    [
        (LocalBlend(), ["cat"], ["dog"]),
        (LocalBlend(before=("the cat",)), ["the", "cat"], []),
        (LocalBlend(("cat",), ("photo", "dog")), ["cat"], ["photo", "dog"]),
    ],
)
def test_a_blend_is_by_its_words_or_by_those_that_differ(
    tiny_backbone, blend, before, after
):
    edits = build_one(tiny_backbone, WordEdit("replace", blend=blend))
    tokenizer, rows = tiny_backbone.tokenizer, edits.blend_tokens
    for row, caption, words in zip(rows, (CAT, DOG), (before, after), strict=True):
        at = [i for word in words for i in find_tokens(tokenizer, caption, word)]
        assert row.nonzero().flatten().tolist() == sorted(at)
    assert edits.threshold.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("edit", "after", "word"),
    [
        (WordEdit("replace"), HATS, "with hats"),
        (WordEdit("replace", weights=(("cat", 2.0),)), DOG, "'cat'"),
        (WordEdit("refine", blend=LocalBlend(("dog",))), DOG, "'dog'"),
        (WordEdit("refine", blend=LocalBlend()), CAT, "name words"),
        (WordEdit("refine"), "dog " * 80, "tokens"),
    ],
)
def test_edits_that_do_not_fit_the_captions_are_refused(
    tiny_backbone, edit, after, word
):
    with pytest.raises(ValueError, match=word):
        build_one(tiny_backbone, edit, after=after)


@pytest.mark.parametrize(
    "change", [{"mode": "swap"}, {"tau": 1.5}, {"source": "both"}], ids=str
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        WordEdit(**{"mode": "refine"} | change)
