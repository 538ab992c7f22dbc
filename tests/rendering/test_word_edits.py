"""Edit tensors hold each pair's own edit, and refuse words that it does not have."""

import pytest
import torch

from ip2p_lib.rendering import LocalBlend, WordEdit
from ip2p_lib.rendering.token_alignment import (
    align,
    find_tokens,
    get_refinement_mapper,
    get_replacement_mapper,
)
from ip2p_lib.rendering.word_edits import NO_BLEND, build_edit_tensors

CAT, DOG = "a photo of the cat", "a photo of the dog"
HATS = "a photo of the cat with hats"


def build_one(backbone, edit, before=CAT, after=DOG):
    return build_edit_tensors(backbone, [edit], [before], [after])


@pytest.mark.parametrize(
    ("mode", "mapper", "after"),
    [("replace", get_replacement_mapper, DOG), ("refine", get_refinement_mapper, HATS)],
)
def test_columns_are_mapped_as_the_captions_tokens(tiny_backbone, mode, mapper, after):
    ids = tiny_backbone.tokenize([CAT, after]).tolist()
    expected = mapper(align(*ids, tiny_backbone.tokenizer.eos_token_id))
    edits = build_one(tiny_backbone, WordEdit(mode, 0.4), after=after)
    assert torch.equal(edits.mapper[0], expected.mapper)
    assert torch.equal(edits.keep[0], expected.keep)
    assert edits.tau.tolist() == [0.4] and not edits.blends
    assert not edits.blend_tokens.any() and edits.threshold.tolist() == [NO_BLEND]


def test_every_pair_has_its_own_edit(tiny_backbone):
    word_edits = [WordEdit("replace", 0.3), None, WordEdit("refine", 1.0)]
    captions = [CAT] * 3, [DOG, DOG, HATS]
    edits = build_edit_tensors(tiny_backbone, word_edits, *captions)
    assert edits.tau.tolist() == [0.3, 0.0, 1.0]
    for i, after in ((0, DOG), (2, HATS)):
        alone = build_one(tiny_backbone, word_edits[i], after=after)
        assert torch.equal(edits.mapper[i], alone.mapper[0])
        assert torch.equal(edits.keep[i], alone.keep[0])
    assert not edits.mapper[1].any() and edits.keep[1].all()


def test_a_weight_multiplies_its_words_column(tiny_backbone):
    plain = build_one(tiny_backbone, WordEdit("refine"), after=HATS)
    weights = (("photo", -2.0), ("hats", 3.0))
    edits = build_one(tiny_backbone, WordEdit("refine", weights=weights), after=HATS)
    factor = torch.ones(77)
    for word, c in weights:
        factor[find_tokens(tiny_backbone.tokenizer, HATS, word)] = c
    assert torch.equal(edits.mapper, plain.mapper * factor)
    assert torch.equal(edits.keep, plain.keep * factor)
    assert (edits.keep == 3).any() and (edits.mapper == -2).any()


@pytest.mark.parametrize(
    ("blend", "before", "after"),
    [
        (LocalBlend(), ["cat"], ["dog"]),
        (LocalBlend(before=("the cat",)), ["the", "cat"], []),
        (
            LocalBlend(before=("cat",), after=("photo", "dog")),
            ["cat"],
            ["photo", "dog"],
        ),
    ],
)
def test_a_blend_is_by_its_words_or_by_those_that_differ(
    tiny_backbone, blend, before, after
):
    edits = build_one(tiny_backbone, WordEdit("replace", blend=blend))
    for row, caption, words in zip(
        edits.blend_tokens, (CAT, DOG), (before, after), strict=True
    ):
        at = [
            i for w in words for i in find_tokens(tiny_backbone.tokenizer, caption, w)
        ]
        assert row.nonzero().flatten().tolist() == sorted(at)
    assert edits.blends and edits.threshold.tolist() == pytest.approx([0.3])


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
